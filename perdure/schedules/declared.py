"""Schedules that the code of an agent declares, with `@cron` and `@every`.

A process says what its code declares when it starts, and again every `SAY_EVERY` seconds. A scheduler makes schedules
of the newest set that is still said, and retires those that it lacks. So a set of new code takes the place of the old
one at once, however often a process of old code starts meanwhile; and that of old code comes back when nobody has said
the newer one for `SILENT` seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal

import asyncpg
import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from perdure.engine.codec import short_hash
from perdure.messages import Overlap
from perdure.schedules.expression import Schedule
from perdure.schedules.ticking import read_schedule
from perdure.store.audit import acting
from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries

SAY_EVERY: Final = 10.0
SILENT: Final = 60.0  # seconds without a word, after which a set counts no more
_PAGE: Final = 20

_SQL = load_queries("schedules.sql")
log = structlog.get_logger(__name__)


class Declared(BaseModel):
    """One schedule of an agent's code, by its name there; fields as those of `schedule.set`."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    workflow: Annotated[str, Field(pattern=r"^[^\x00]{1,256}$")]
    cron: Annotated[str, Field(pattern=r"^[^\x00]{1,256}$")]
    timezone: Annotated[str, Field(pattern=r"^[^\x00]{1,256}$")]
    missed: Literal["latest", "all"]
    missed_limit: Annotated[int, Field(ge=1, le=1000)]
    overlap: Overlap


_SET = TypeAdapter(Annotated[list[Declared], Field(max_length=1000)])


def schedule_name(agent: str, name: str) -> str:
    """The name of a schedule that code declares. A name with dots is nobody else's: people and tenants have none."""
    return f"cron.{agent}.{name}"


# -- in an agent's process --------------------------------------------------------------------------------------------


class Declaration:
    """What the code of one agent declares."""

    def __init__(self, pool: Pool, agent: str, schedules: Sequence[Declared]) -> None:
        self._pool = pool
        self._agent = agent
        self._said = _SET.dump_json(sorted(schedules, key=lambda one: one.name)).decode()
        self._digest = short_hash(agent, self._said)
        self._some = bool(schedules)

    async def say(self) -> bool:
        """Say it, and whether it must be said again: code without schedules only does where there was some with."""
        if not self._some and not await self._pool.fetchval(_SQL["declares"], self._agent):
            return False
        await self._pool.execute(_SQL["declare"], self._agent, self._digest, self._said, SILENT, SAY_EVERY)
        return True


# -- in a scheduler ---------------------------------------------------------------------------------------------------


async def take_up(pool: Pool, now: datetime) -> int:
    """Make schedules of what agents declare and is new; of how many agents. Several may do it at once."""
    taken = 0
    for agent in await pool.fetch(_SQL["news"], SILENT, _PAGE):
        name = agent["agent_name"]
        async with pool.acquire() as connection, acting(connection, f"agent {name}"), connection.transaction():
            taken += await _take_up(connection, name, now)
    return taken


async def _take_up(connection: PooledConnection, agent: str, now: datetime) -> bool:
    await connection.fetch(_SQL["lock_declarations"], agent)
    newest = await connection.fetchrow(_SQL["newest"], agent, SILENT)
    if newest is None or newest["holds"] or await connection.fetchval(_SQL["declared_due"], agent, now):
        return False  # another scheduler was first; or a moment of the code of before is a run first
    await connection.execute(_SQL["hold"], agent, newest["digest"])
    try:
        said = _SET.validate_json(newest["crons"])
    except ValidationError as error:  # nothing of it is done, and no other agent's schedules stop for it
        log.warning("an agent's schedules make no sense", action="schedule.bad", agent=agent, error=str(error))
        return False
    marks = await connection.fetch(_SQL["take_marks"], agent)
    for one in said:
        await _set(connection, agent, one, marks, now)
    names = [schedule_name(agent, one.name) for one in said]
    await connection.execute(_SQL["retire"], agent, names)
    log.info("took up the schedules of an agent's code", action="schedules.declared", agent=agent, schedules=names)
    return True


async def _set(
    connection: PooledConnection, agent: str, one: Declared, marks: Sequence[asyncpg.Record], now: datetime
) -> None:
    error = next_at = before = None
    try:
        schedule = await read_schedule(one.cron, one.timezone)
    except ValueError as wrong:  # the time zones of this machine are not those of the agent's
        log.exception("a schedule has no moments", action="schedule.broken", schedule=one.name, agent=agent)
        error = str(wrong)
    else:
        next_at, before = schedule.next_after(now), _before(schedule, one, marks)
    await connection.execute(
        _SQL["set_declared"], schedule_name(agent, one.name), agent, one.workflow, one.cron, one.timezone,
        one.missed, one.missed_limit, one.overlap, next_at, before, error,
    )  # fmt: skip


def _before(schedule: Schedule, one: Declared, marks: Sequence[asyncpg.Record]) -> datetime | None:
    """The first moment that processes of before, which ticked themselves, have left."""
    said = f"{one.cron} {one.timezone}"
    fired = [mark["fired_for"] for mark in marks if (mark["workflow"], mark["schedule"]) == (one.workflow, said)]
    return schedule.next_after(fired[0]) if fired else None
