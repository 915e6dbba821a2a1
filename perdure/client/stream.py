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


class Gets:
    """Direct gets over one connection. Their answers share an inbox: one of its own for each costs the client a task,
    and the server a subscription.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._inbox = ""
        self._asked = 0
        self._open: dict[str, _Batch] = {}

    async def get(self, nats: Nats, subject: str, wanted: dict[str, object]) -> _Batch:
        """Ask, and wait until all that was asked for is there, or no more of it comes."""
        if not self._inbox:
            async with self._lock:
                if not self._inbox:
                    inbox = nats.new_inbox()
                    await nats.subscribe(f"{inbox}.*", cb=self._arrived)
                    self._inbox = inbox
        self._asked += 1
        reply = f"{self._inbox}.{self._asked}"
        batch = self._open[reply] = _Batch()
        try:
            await nats.publish(subject, orjson.dumps(wanted), reply=reply)
            await batch.wait()
        finally:
            del self._open[reply]
        return batch

    async def _arrived(self, message: Msg) -> None:
        batch = self._open.get(message.subject)
        if batch is not None:
            batch.take(message)


class StreamReader:
    """Reads a run's stored events, each once, also over several calls of `read`. `more`: a batch was not all."""

    def __init__(self, nats: Nats, gets: Gets, run_id: str) -> None:
        self._nats = nats
        self._gets = gets
        self._subject = subject_at(nats, subjects.run_events(run_id))
        self._direct_get = f"{_DIRECT_GET}.{stream_at(nats, subjects.STREAM_EVENTS)}"
        self._next = 1
        self.more = False

    async def read(self) -> list[bytes]:
        """At most one batch of the events not read yet; none when there are no more, or no stream to read from."""
        wanted = {"seq": self._next, "next_by_subj": self._subject, "batch": BATCH}
        batch = await self._gets.get(self._nats, self._direct_get, wanted)
        self.more = len(batch.found) == BATCH or not batch.whole
        if not batch.whole:
            log.debug("the event stream does not answer", action="client.stream_silent", subject=self._subject)
        self._next = batch.last + 1 if batch.found else self._next
        return batch.found


class _Batch:
    """The answers to one direct get."""

    def __init__(self) -> None:
        self.found: list[bytes] = []
        self.last = 0  # sequence in the stream of the last one
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def whole(self) -> bool:
        """Whether its end has come."""
        return self._ended.done()

    def take(self, message: Msg) -> None:
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

    async def wait(self) -> None:
        """Wait for its end, unless a pause before it is too long."""
        had = -1
        while not self._ended.done() and len(self.found) > had:
            had = len(self.found)
            await asyncio.wait((self._ended,), timeout=PATIENCE)
