"""Ticks schedules, and takes up what the code of agents declares; any number of schedulers may do it at once."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from nats.aio.client import Client

from perdure.engine import runs
from perdure.engine.clock import Clock
from perdure.schedules.declared import take_up
from perdure.schedules.ticking import BATCH, next_moment, tick
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 0.5  # seconds at most between looks


class Ticker:
    """The loop of one scheduler."""

    def __init__(self, pool: Pool, nats: Client, clock: Clock) -> None:
        self._pool = pool
        self._nats = nats
        self._clock = clock

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            try:
                while await self.tick() == BATCH:
                    pass
                await take_up(self._pool, self._clock.now())
                first = await next_moment(self._pool)
            except CONNECTION_ERRORS as error:
                log.info("schedules not looked at", action="schedules.retry", error=type(error).__name__)
                first = None
            left = LOOK_EVERY if first is None else (first - self._clock.now()).total_seconds()
            await asyncio.sleep(min(max(left, 0.01), LOOK_EVERY))

    async def tick(self) -> int:
        """Make runs of what is due, and wake them; of how many schedules."""
        due, made = await tick(self._pool, self._clock.now())
        for start in made:
            runs.wake(self._nats, start.run_id, start.agent_name)
        return due
