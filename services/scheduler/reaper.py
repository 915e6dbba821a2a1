"""Finds lost processes, and puts back what they held.

A process that died is known by its session lock within a poll (50 ms); one that hangs, or is cut off, by its lease.
A false alarm is harmless: the epoch rises with the requeue, so nothing the process still sends is accepted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import asyncpg
import structlog
from nats.aio.client import Client

from perdure.engine import runs
from perdure.engine.points import reach
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("engine.sql")
log = structlog.get_logger(__name__)

POLL = 0.05
BATCH = 1000


class Reaper:
    """Watches the processes. Any number may watch: burying is one conditional update."""

    def __init__(self, pool: Pool, nats: Client, settings: Settings) -> None:
        self._pool = pool
        self._nats = nats
        self._settings = settings
        self._trust_leases_at = 0.0
        self.lost: Counter[str] = Counter()  # by reason
        self.requeued = self.dead = 0

    def readings(self) -> Iterator[Reading]:
        """What is counted of losses."""
        for reason in ("lease", "session lock"):
            yield "perdure_processes_lost_total", (reason,), self.lost[reason]
        yield "perdure_runs_requeued_total", (), self.requeued
        yield "perdure_runs_dead_total", (), self.dead

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        self._trust_leases_at = 0.0
        forgotten_at = loop.time()
        while True:
            try:
                await self.look(leases=loop.time() >= self._trust_leases_at)
                if loop.time() >= forgotten_at:
                    await self.requeue_forgotten()
                    forgotten_at = loop.time() + self._settings.sweep_interval
            except CONNECTION_ERRORS as error:
                # Nobody could renew while Postgres was away: every lease gets its whole length again.
                log.info("processes not watched", action="reaper.retry", error=type(error).__name__)
                self._trust_leases_at = loop.time() + self._settings.lease_seconds
                await asyncio.sleep(0.2)
            await asyncio.sleep(POLL)

    async def look(self, *, leases: bool) -> None:
        """Bury the processes that are lost, and requeue what they held."""
        for record in await self._pool.fetch(_SQL["lost_processes"], leases, self._settings.lease_seconds):
            reach("bury.before")
            # It cannot have lived longer since it renewed its lease.
            doubtful = record["lease_until"] - timedelta(seconds=2 * self._settings.lease_seconds + 1)
            if await self._pool.fetchval(_SQL["bury_process"], record["process_id"], doubtful):
                reason = "lease" if record["lease_over"] else "session lock"
                self.lost[reason] += 1
                log.warning(
                    "process lost",
                    action="process.lost",
                    process_id=record["process_id"],
                    agent=record["agent_name"],
                    reason=reason,
                )
            reach("bury.after")
            await self.requeue(record["process_id"])

    async def requeue_forgotten(self) -> None:
        """Requeue what a buried process still holds: the scheduler that buried it died in between."""
        for record in await self._pool.fetch(_SQL["held_by_lost"]):
            await self.requeue(record["process_id"])

    async def requeue(self, process_id: str) -> int:
        """Give the runs of a lost process to others; those that used up their attempts end `dead`."""
        total = 0
        while True:
            records = await self._pool.fetch(_SQL["requeue_lost"], process_id, self._settings.run_max_attempts, BATCH)
            reach("requeue.after")
            for record in records:
                await self._tell(record)
            total += len(records)
            if len(records) < BATCH:
                break
        if total:
            log.info("runs requeued", action="reaper.requeued", process_id=process_id, runs=total)
        return total

    async def _tell(self, record: asyncpg.Record) -> None:
        if record["status"] == "pending":
            self.requeued += 1
            runs.wake(self._nats, record["run_id"], record["agent_name"])
            return
        self.dead += 1
        runs.tell_end(self._nats, record["run_id"], record["agent_name"], "dead", record["end_seq"], record["error"])
        if record["parent_run_id"] is not None or record["joined"]:
            await runs.tell_parents(self._pool, self._nats, [record["run_id"]])
