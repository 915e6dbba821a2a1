"""What the stream RUN_EVENTS holds of one run.

It is read by direct gets in batches, which need no consumer on the server: nothing is left behind by a watcher that
dies, and nothing has to be made again after a reconnect or when the stream was wiped.
"""

from __future__ import annotations

import asyncio
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
    """Reads a run's stored events, each once, also over several calls of `read`. `more`: a batch was not all."""

    def __init__(self, nats: Nats, run_id: str) -> None:
        self._nats = nats
        self._subject = subject_at(nats, subjects.run_events(run_id))
        self._direct_get = f"{_DIRECT_GET}.{stream_at(nats, subjects.STREAM_EVENTS)}"
        self._next = 1
        self.more = False

    async def read(self) -> list[bytes]:
        """At most one batch of the events not read yet; none when there are no more, or no stream to read from."""
        batch = _Batch()
        # A callback, as `next_msg` makes two tasks for each message.
        inbox = await self._nats.subscribe(self._nats.new_inbox(), cb=batch.take)
        try:
            wanted = {"seq": self._next, "next_by_subj": self._subject, "batch": BATCH}
            await self._nats.publish(self._direct_get, orjson.dumps(wanted), reply=inbox.subject)
            whole = await batch.whole()
            self.more = len(batch.found) == BATCH or not whole
            if not whole:
                log.debug("the event stream does not answer", action="client.stream_silent", subject=self._subject)
        finally:
            if not self._nats.is_closed:
                await inbox.unsubscribe()
        self._next = batch.last + 1 if batch.found else self._next
        return batch.found


class _Batch:
    """The answers to one direct get."""

    def __init__(self) -> None:
        self.found: list[bytes] = []
        self.last = 0  # sequence in the stream of the last one
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def take(self, message: Msg) -> None:
        """One more event, or the end of the batch (204), `not found` (404), `no stream` (503)."""
        headers = message.headers or {}
        stored = "Status" not in headers and "Nats-Sequence" in headers
        if self._ended.done():
            return
        if stored:
            self.found.append(message.data)
            self.last = int(headers["Nats-Sequence"])
        if not stored or "Nats-Num-Pending" not in headers:  # a server older than batches sends one event and no end
            self._ended.set_result(None)

    async def whole(self) -> bool:
        """Whether its end comes, with no pause that is too long before it."""
        had = -1
        while not self._ended.done() and len(self.found) > had:
            had = len(self.found)
            await asyncio.wait((self._ended,), timeout=PATIENCE)
        return self._ended.done()
