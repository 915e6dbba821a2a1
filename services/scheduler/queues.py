"""Queues, as the scheduler sees to them: it tells processes of places that came up, and says how the queues are.

Claims keep the bounds; what is here only sees that somebody claims. A process claims by itself when a run of its own
leaves a queue; this finds the rest: a place for another agent or replica, a rate that allows the next start, a changed
setting, the places of a lost process, a wake-up that was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.service import Request
from perdure.engine import queues
from perdure.engine.clock import Clock
from perdure.engine.events import publish_nowait
from perdure.errors import NotFound
from perdure.messages import QueueList, parse
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("queues.sql")
log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 0.25  # seconds between looks that nothing asked for
GATHER: Final = 0.02  # seconds in which what is told becomes one look
FORGET_EVERY: Final = 60.0
BATCH: Final = 1000


class Queues:
    """Any number may look: telling a process twice is harmless."""

    def __init__(self, pool: Pool, nats: Client, clock: Clock) -> None:
        self._pool = pool
        self._nats = nats
        self._clock = clock
        self._told = asyncio.Event()

    async def open(self) -> None:
        """Hear of places that came up."""
        await self._nats.subscribe(subjects.QUEUE_LOOK, queue=subjects.QUEUE_SCHEDULER, cb=self._heard)

    async def _heard(self, _message: Msg) -> None:
        self._told.set()

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        forget_at = loop.time() + FORGET_EVERY
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._told.wait()
                    await asyncio.sleep(GATHER)
            self._told.clear()
            try:
                await self.look()
                if loop.time() >= forget_at:
                    await self.forget_keys()
                    forget_at = loop.time() + FORGET_EVERY
            except CONNECTION_ERRORS as error:
                log.info("queues not looked at", action="queues.retry", error=type(error).__name__)
                await asyncio.sleep(0.2)

    async def look(self) -> int:
        """Tell processes of runs for which they have a place; to how many."""
        if not self._nats.is_connected:
            return 0
        found = await queues.look(self._pool)
        for process_id, run_id in found:
            publish_nowait(self._nats, subjects.process_offer(process_id), run_id.encode())
        return len(found)

    async def forget_keys(self) -> None:
        """Drop keys of deduplication and debouncing that have done their work."""
        await self._pool.execute(_SQL["forget_keys"], self._clock.now(), BATCH)

    async def list(self, request: Request) -> dict[str, Any]:
        """`queue.list`: every queue, or one, with its depth, its limits, and why its runs wait."""
        name = parse(QueueList, request.data).queue
        found = await queues.list_queues(self._pool, name)
        if name is not None and not found:
            raise NotFound(f"there is no queue {name!r}: it is there once a run stands in it or it has a setting")
        return {"status": "success", "queues": found}
