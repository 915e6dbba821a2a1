"""What the stream RUN_EVENTS holds of one run.

It is read by direct gets in batches, which need no consumer on the server: nothing is left behind by a watcher that
dies, and nothing has to be made again after a reconnect or when the stream was wiped.
"""

from __future__ import annotations

from typing import Final

import orjson
import structlog
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.namespace import stream_at, subject_at

BATCH: Final = 256
PATIENCE: Final = 2.0  # seconds for the next message of a batch
_DIRECT_GET: Final = "$JS.API.DIRECT.GET"

log = structlog.get_logger(__name__)


class StreamReader:
    """Reads a run's stored events, each once, also over several calls of `read`."""

    def __init__(self, nats: Nats, run_id: str) -> None:
        self._nats = nats
        self._subject = subject_at(nats, subjects.run_events(run_id))
        self._direct_get = f"{_DIRECT_GET}.{stream_at(nats, subjects.STREAM_EVENTS)}"
        self._next = 1

    async def read(self) -> list[bytes]:
        """At most one batch of the events not read yet; none when there are no more, or no stream to read from."""
        inbox = await self._nats.subscribe(self._nats.new_inbox())
        found: list[bytes] = []
        try:
            wanted = {"seq": self._next, "next_by_subj": self._subject, "batch": BATCH}
            await self._nats.publish(self._direct_get, orjson.dumps(wanted), reply=inbox.subject)
            while (message := await inbox.next_msg(timeout=PATIENCE)) is not None and self._stored(message):
                found.append(message.data)
                if "Nats-Num-Pending" not in (message.headers or {}):
                    break  # a server older than batches sends one event and no end
        except TimeoutError:
            log.debug("the event stream does not answer", action="client.stream_silent", subject=self._subject)
        finally:
            if not self._nats.is_closed:
                await inbox.unsubscribe()
        return found

    def _stored(self, message: Msg) -> bool:
        """Whether this is an event, not the end of the batch (204), `not found` (404) or `no stream` (503)."""
        headers = message.headers or {}
        if "Status" in headers or "Nats-Sequence" not in headers:
            return False
        self._next = int(headers["Nats-Sequence"]) + 1
        return True
