"""What waits in Postgres, for metrics: looked up now and then, and only where metrics are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import asyncpg
import structlog

from perdure.observe.metrics import MOST_LABELS, OTHER, Reading
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("observe.sql")
log = structlog.get_logger(__name__)

EVERY: Final = 10.0


class Backlog:
    """The runs and callbacks that are due. Every scheduler sees the same, so take the largest."""

    def __init__(self, pool: Pool, *, every: float = EVERY) -> None:
        self._pool = pool
        self._every = every
        self._found: list[Reading] = []
        self._seen: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                self._found = []  # nothing is known, which is better than what was true once
                log.info("backlog not read", action="backlog.not_read", error=type(error).__name__)
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Read it once."""
        rows = await self._pool.fetch(_SQL["backlog"], MOST_LABELS)
        due = await self._pool.fetchrow(_SQL["callbacks_due"])
        found: list[Reading] = []
        agents = {row["agent_name"] for row in rows}
        for agent in self._seen - agents:  # an agent without a backlog any more has one of 0
            found.append(("perdure_runs_pending", (agent,), 0))
            found.append(("perdure_runs_pending_oldest_seconds", (agent,), 0))
        for row in rows:
            found.append(("perdure_runs_pending", (row["agent_name"],), row["runs"]))
            found.append(("perdure_runs_pending_oldest_seconds", (row["agent_name"],), max(0.0, row["oldest"])))
        if rows and (left := rows[0]["total"] - sum(row["runs"] for row in rows)):
            found.append(("perdure_runs_pending", (OTHER,), left))
        if len(self._seen) < MOST_LABELS:
            self._seen |= agents
        if due is not None:
            found.append(("perdure_callbacks_due", (), due["callbacks"]))
            found.append(("perdure_callbacks_lag_seconds", (), max(0.0, due["oldest"])))
        self._found = found

    def readings(self) -> Iterator[Reading]:
        """What was found last."""
        yield from self._found
