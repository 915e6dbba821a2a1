from __future__ import annotations

from typing import Any

import pytest

from perdure.bus.connection import connect
from tests.support import eventually


class Wire:
    """What a connection writes, in order."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data
        self._transport.write(data)

    def writelines(self, lines: list[bytes]) -> None:
        self.written += b"".join(lines)
        self._transport.writelines(lines)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.mark.parametrize("namespace", ["", "staging"])
async def test_the_server_is_asked_after_it_was_given_all_that_was_sent(settings, namespace):
    nc = await connect(settings.model_copy(update={"namespace": namespace}), "test")
    nc._transport = wire = Wire(nc._transport)
    heard = []

    async def hear(message) -> None:
        heard.append(message.data)

    await nc.subscribe("flush.test", cb=hear)
    await nc.publish("flush.test", b"first")
    await nc.flush()
    before, ping, after = wire.written.partition(b"PING\r\n")
    assert before.startswith(b"SUB "), before
    assert b"first\r\n" in before
    assert (ping, after) == (b"PING\r\n", b"")
    await nc.publish("flush.test", b"second")
    await nc.flush()
    await eventually(lambda: heard == [b"first", b"second"])  # once each: nothing is written twice
    await nc.close()
