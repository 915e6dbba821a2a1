"""Forgets what is over: runs that ended long ago, and whole partitions of their journals.

Nothing here is state: each step is found in Postgres again, so any number of schedulers may do it, and any may die.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from perdure.engine.points import reach
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("retention.sql")
log = structlog.get_logger(__name__)

EVERY: Final = 60.0
PAGE: Final = 200  # runs that one transaction forgets or moves
PAUSE: Final = 0.05  # seconds between pages: however many there are, Postgres has its hands free


class Retention:
    """Makes shelves of the journal ahead, empties and drops those whose time is over."""

    def __init__(self, pool: Pool, settings: Settings, *, page: int = PAGE) -> None:
        self._pool = pool
        self._settings = settings
        self._page = page

    async def run(self) -> None:
        """Make shelves at once, and see to all of it every minute, until cancelled."""
        ahead = True
        while True:
            try:
                await self.make_ahead()
                if not ahead:
                    await self.clean(pause=PAUSE)
                ahead = False
            except CONNECTION_ERRORS as error:
                log.info("retention postponed", action="retention.retry", error=type(error).__name__)
            except asyncpg.PostgresError:
                # Another scheduler was first, or somebody holds the journal: what is left is found again.
                log.warning("retention postponed", action="retention.retry", exc_info=True)
            await asyncio.sleep(EVERY)

    async def make_ahead(self) -> None:
        """Make the shelves of now and of the time after, for each retention in use."""
        if self._settings.retention_days is not None:
            await self._pool.execute(_SQL["set_default"], self._settings.retention_days)
        await self._pool.execute(_SQL["make_shelves"])

    async def clean(self, *, pause: float = 0.0) -> None:
        """Forget the runs whose time is over, move the others off the shelves that are due, drop those."""
        for record in await self._pool.fetch(_SQL["due_shelves"]):
            await self._empty(record["shelf"], pause)
            await self._drop(record["shelf"])
        for record in await self._pool.fetch(_SQL["strays"]):
            await self._forget_strays(record, pause)

    async def _empty(self, shelf: int, pause: float) -> None:
        """Take every run off a shelf, a page at a time."""
        forgotten = moved = 0
        while True:
            async with self._pool.acquire() as connection, connection.transaction():
                found = [record["run_id"] for record in await connection.fetch(_SQL["lock_shelf"], shelf, self._page)]
                gone = {record["run_id"] for record in await connection.fetch(_SQL["forget"], found, False)}
                reach("retention.forgotten")
                staying = [run_id for run_id in found if run_id not in gone]
                await connection.execute(_SQL["move_out"], staying)
                reach("retention.moved")
            reach("retention.page")
            forgotten += len(gone)
            moved += len(staying)
            if len(found) < self._page:
                break
            await asyncio.sleep(pause)
        reach("retention.emptied")
        if forgotten or moved:
            log.info("a shelf is due", action="retention.shelf", shelf=shelf, forgotten=forgotten, moved=moved)

    async def _drop(self, shelf: int) -> None:
        """Drop the partition, if nobody holds the journal for long, and no run was passed over: else the next time."""
        if await self._pool.fetchval(_SQL["drop_shelf"], shelf):
            reach("retention.dropped")
            log.info("a shelf is dropped", action="retention.dropped", shelf=shelf)

    async def _forget_strays(self, place: asyncpg.Record, pause: float) -> None:
        """Forget runs that no partition takes along: their setting was another one when they began."""
        forgotten = 0
        while True:
            async with self._pool.acquire() as connection, connection.transaction():
                records = await connection.fetch(_SQL["lock_strays"], *place, self._page)
                gone = await connection.fetch(_SQL["forget"], [record["run_id"] for record in records], True)
            forgotten += len(gone)
            if len(gone) < self._page:
                break
            await asyncio.sleep(pause)
        if forgotten:
            log.info("runs forgotten", action="retention.forgotten", agent=place["agent_name"], runs=forgotten)
