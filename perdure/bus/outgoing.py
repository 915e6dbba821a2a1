"""Messages that nobody waits for: they are put together and leave in one write, a moment later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Final

from nats.aio.client import Client

from perdure.bus.connection import PENDING_SIZE
from perdure.bus.namespace import subject_at

MOMENT: Final = 0.001  # seconds that a message may wait for others
PACE: Final = 0.004  # seconds from one write to the next, for messages that can wait
LARGEST_WRITE: Final = 65_536  # bytes that wait for no more


class Outgoing:
    """What one connection sends without an answer; in the order in which it is put."""

    __slots__ = ("_before", "_bytes", "_commands", "_left_at", "_nats", "_soon", "_timer", "away_since", "lost")

    def __init__(self, nats: Client, before: Callable[[], None] | None = None) -> None:
        self._nats = nats
        self._before = before  # puts what it has, when the rest is about to leave
        self._commands: list[bytes] = []
        self._bytes = 0
        self._left_at = 0.0  # loop time of the last write
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.lost = 0  # messages that could not leave
        self.away_since: datetime | None = None  # when the first of them could not, since the server was there

    def put(self, subject: str, payload: bytes, *, soon: bool = False) -> bool:
        """Send `payload` to `subject`, see `wake`; `soon`: when the loop turns, with all that was put before.

        False, and one more `lost`, while the server is away or when it does not take so much in one message.
        """
        nats = self._nats
        if not nats.is_connected or len(payload) > nats.max_payload:
            self._lose(1)
            return False
        # nats-py's `publish` is a coroutine with several checks of each subject; this is what it writes in the end.
        self._commands.append(b"PUB %b %d\r\n%b\r\n" % (subject_at(nats, subject).encode(), len(payload), payload))
        self._bytes += len(payload)
        if not (soon or self._bytes > LARGEST_WRITE):
            self.wake()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.flush)
        return True

    def wake(self) -> None:
        """Something is there to be sent: in a moment, or, when something just was, with what comes meanwhile."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + MOMENT, self._left_at + PACE), self._moment_over)

    def _moment_over(self) -> None:
        self._timer = None
        if self._before is not None:
            self._before()
        self.flush()

    def flush(self) -> None:
        """Send what was put."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        commands, self._commands, self._bytes = self._commands, [], 0
        if not commands:
            return
        nats = self._nats
        if not nats.is_connected or nats.pending_data_size > PENDING_SIZE:
            self._lose(len(commands))
            self.away_since = self.away_since or datetime.now(UTC)  # also when it is there and takes nothing
            return
        self._left_at = asyncio.get_running_loop().time()
        _drive(nats._send_command(b"".join(commands)))  # noqa: SLF001 -- see `put`
        _drive(nats._flush_pending())  # noqa: SLF001 -- the same

    def _lose(self, number: int) -> None:
        self.lost += number
        if not self._nats.is_connected:
            self.away_since = self.away_since or datetime.now(UTC)

    def hold(self) -> None:
        """Send nothing until more is put: what was put before goes with that."""
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None


def _drive(coroutine: Coroutine[object, None, object]) -> None:
    """Run `coroutine` up to where it would wait, which it does only when the buffer to the server is full."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
