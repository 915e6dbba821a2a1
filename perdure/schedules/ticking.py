"""One tick of all schedules: moments that are due become runs, in the commit that moves their schedules on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import structlog

from perdure.engine import runs
from perdure.engine.accepting import insert_starts
from perdure.engine.codec import decode, short_hash
from perdure.engine.points import reach
from perdure.engine.rows import Start
from perdure.engine.start_options import StartOptions
from perdure.engine.stored import SCHEDULE, open_columns
from perdure.schedules.expression import Schedule
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Unreadable
from perdure.subjects import MARK, PLATFORM, tenant_of

_SQL = load_queries("schedules.sql")
log = structlog.get_logger(__name__)

BATCH: Final = 20
ON_TIME: Final = timedelta(seconds=30)  # a moment that becomes a run later than this was missed


async def tick(pool: Pool, now: datetime) -> tuple[int, list[Start]]:
    """Make runs of what is due at `now`: of how many schedules (at most `BATCH`), and the runs that are new.

    Several may tick at once: a schedule that one of them holds is passed over by the others.
    """
    async with pool.acquire() as connection, connection.transaction():
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
            moments = await asyncio.to_thread(chosen, row, schedule, now)  # there may be a thousand
            starts += [start_of(row, at) for at in moments]
            last = (moments[-1], starts[-1].run_id) if moments else (None, None)
            await connection.execute(_SQL["ticked"], row["name"], schedule.next_after(now), *last)
        made = await insert_starts(connection, starts) if starts else set()
        if made:
            reach("schedule.before")
    if made:
        reach("schedule.after")
        log.info("schedules became runs", action="schedules.ticked", schedules=len(due), runs=len(made))
    return len(due), [start for start in starts if start.run_id in made]


async def next_moment(pool: Pool) -> datetime | None:
    """The first moment of all schedules; None when none has one."""
    first: datetime | None = await pool.fetchval(_SQL["next"])
    return first


async def read_schedule(cron: str, timezone: str) -> Schedule:
    """A parsed schedule. In a thread: a time zone is a file. Raises `ValueError` for one that makes no sense."""
    return await asyncio.to_thread(Schedule.parse, cron, timezone)


def chosen(row: Mapping[str, Any] | asyncpg.Record, schedule: Schedule, now: datetime) -> list[datetime]:
    """Which of the moments of a schedule that are due become runs."""
    if {"skip": row["busy"], "buffer_one": row["unbegun"]}.get(row["overlap"]):
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
    return runs.new_start(
        _run_id(row, moment),
        row["agent_name"],
        task,
        workflow=row["workflow"],
        options=None if options == StartOptions() else options,
    )


def _run_id(row: Mapping[str, Any] | asyncpg.Record, moment: str) -> str:
    if row["declared"]:  # as processes of before made it, which may still run beside: a moment is one run of both
        said = f"{row['cron']} {row['timezone']}"
        return f"cron-{short_hash(row['agent_name'], row['workflow'], said, moment)}"
    # the runs of a tenant's schedule are its own: an id says whose it is
    tenant = tenant_of(row["name"])
    mark = "" if tenant == PLATFORM else f"{tenant}{MARK}"
    return f"{mark}s-{short_hash(row['name'], moment)}"
