"""Ticks schedules: moments that are due become runs, once over any number of schedulers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import structlog
from nats.aio.client import Client

from perdure.agent.cron import Schedule
from perdure.engine import runs
from perdure.engine.accepting import insert_starts
from perdure.engine.clock import Clock
from perdure.engine.codec import decode, short_hash
from perdure.engine.points import reach
from perdure.engine.rows import Start
from perdure.engine.start_options import StartOptions
from perdure.engine.stored import SCHEDULE, open_columns
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Unreadable
from perdure.subjects import MARK, PLATFORM, tenant_of

_SQL = load_queries("schedules.sql")
log = structlog.get_logger(__name__)

LOOK_EVERY: Final = 0.5  # seconds at most between looks
BATCH: Final = 20
ON_TIME: Final = timedelta(seconds=30)  # a moment that becomes a run later than this was missed


class Ticker:
    """Several may tick: a schedule that one of them holds is passed over by the others."""

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
                first = await self._pool.fetchval(_SQL["next"])
            except CONNECTION_ERRORS as error:
                log.info("schedules not looked at", action="schedules.retry", error=type(error).__name__)
                first = None
            left = LOOK_EVERY if first is None else (first - self._clock.now()).total_seconds()
            await asyncio.sleep(min(max(left, 0.01), LOOK_EVERY))

    async def tick(self) -> int:
        """Make runs of what is due; of how many schedules."""
        now = self._clock.now()
        async with self._pool.acquire() as connection, connection.transaction():
            due = await connection.fetch(_SQL["due"], now, BATCH)
            starts: list[Start] = []
            for row in await open_columns(connection, due, SCHEDULE):
                try:
                    if isinstance(row["task"], Unreadable):
                        raise row["task"]
                    schedule = await read_schedule(row["cron"], row["timezone"])
                # the time zones, or the keys, of this machine are not those of the one that took it
                except (ValueError, Unreadable) as error:
                    log.exception("a schedule is paused", action="schedule.broken", schedule=row["name"])
                    await connection.execute(_SQL["broken"], row["name"], str(error))
                    continue
                moments = chosen(row, schedule, now)
                starts += [start_of(row, at) for at in moments]
                last = (moments[-1], starts[-1].run_id) if moments else (None, None)
                await connection.execute(_SQL["ticked"], row["name"], schedule.next_after(now), *last)
            made = await insert_starts(connection, starts) if starts else set()
            if made:
                reach("schedule.before")
        if made:
            reach("schedule.after")
        for start in starts:
            if start.run_id in made:
                runs.wake(self._nats, start.run_id, start.agent_name)
        if made:
            log.info("schedules became runs", action="schedules.ticked", schedules=len(due), runs=len(made))
        return len(due)


async def read_schedule(cron: str, timezone: str) -> Schedule:
    """A parsed schedule. In a thread: a time zone is a file. Raises `ValueError` for one that makes no sense."""
    return await asyncio.to_thread(Schedule.parse, cron, timezone)


def chosen(row: Mapping[str, Any] | asyncpg.Record, schedule: Schedule, now: datetime) -> list[datetime]:
    """Which of the moments of a schedule that are due become runs."""
    if row["overlap"] == "skip" and row["busy"]:
        return []
    most = row["missed_limit"] if row["missed"] == "all" and row["overlap"] == "allow" else 1
    due = schedule.between(row["next_at"], now, most)
    return [at for at in due if now - at <= ON_TIME] if row["missed"] == "skip" else due


def start_of(row: Mapping[str, Any] | asyncpg.Record, at: datetime) -> Start:
    """The run of one moment: the schedule's task, which as an object also says for when it is."""
    moment = at.astimezone(UTC).isoformat()
    task = {"scheduled_for": moment} if row["task"] is None else decode(row["task"])
    if isinstance(task, dict):
        task = {"scheduled_for": moment, **task}
    options = StartOptions(row["queue_name"], row["priority"], row["fair_key"])
    # the runs of a tenant's schedule are its own: an id says whose it is
    tenant = tenant_of(row["name"])
    mark = "" if tenant == PLATFORM else f"{tenant}{MARK}"
    return runs.new_start(
        f"{mark}s-{short_hash(row['name'], moment)}",
        row["agent_name"],
        task,
        workflow=row["workflow"],
        options=None if options == StartOptions() else options,
    )
