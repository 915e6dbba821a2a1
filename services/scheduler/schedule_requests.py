"""The requests about schedules: `schedule.set`, `get`, `list`, `pause`, `resume`, `delete`, `backfill`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
from nats.aio.client import Client

from perdure.bus.endpoint import Handler
from perdure.bus.service import Request
from perdure.engine import runs
from perdure.engine.clock import Clock
from perdure.engine.codec import decode, encode
from perdure.engine.stored import SCHEDULE, open_columns, schedule_spot
from perdure.errors import Conflict, InvalidRequest, NotFound
from perdure.messages import ScheduleBackfill, ScheduleList, ScheduleRef, ScheduleSet, parse
from perdure.schedules.declared import SILENT
from perdure.schedules.expression import Schedule, time_zone
from perdure.schedules.ticking import read_schedule, start_of
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Unreadable, vault_of

_SQL = load_queries("schedules.sql")
MOST: Final = 1000  # runs of one backfill


class ScheduleRequests:
    """One method a request."""

    def __init__(self, pool: Pool, nats: Client, clock: Clock) -> None:
        self._pool = pool
        self._nats = nats
        self._clock = clock

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by the last word of their subject."""
        return {
            "set": self.set,
            "get": self.get,
            "list": self.list,
            "pause": self.pause,
            "resume": self.resume,
            "delete": self.delete,
            "backfill": self.backfill,
        }

    async def set(self, request: Request) -> dict[str, Any]:
        """`schedule.set`: make a schedule, or change it."""
        said = parse(ScheduleSet, request.data)
        if "." in said.name:
            why = "names like cron.AGENT.NAME are of schedules that an agent's code declares (@cron, @every)"
            raise InvalidRequest(f"field 'name': {why}; change the code, or pause it", fields=["name"])
        try:
            await asyncio.to_thread(time_zone, said.timezone)
        except ValueError as error:
            raise InvalidRequest(f"field 'timezone': {error}", fields=["timezone"]) from None
        try:
            schedule = await read_schedule(said.cron, said.timezone)
        except ValueError as error:
            raise InvalidRequest(f"field 'cron': {error}", fields=["cron"]) from None
        next_at = schedule.next_after(self._clock.now())
        if next_at is None:
            raise InvalidRequest(f"field 'cron': {said.cron!r} has no moment within five years", fields=["cron"])
        task = encode(said.task, what="task") if "task" in said.model_fields_set else None
        if task is not None:
            vault = vault_of(self._pool)
            await vault.ready([schedule_spot(said.name)])
            task = vault.seal(task, schedule_spot(said.name))
        row = await self._pool.fetchrow(
            _SQL["set"],
            said.name,
            said.agent,
            said.workflow,
            task,
            said.cron,
            said.timezone,
            said.missed,
            said.missed_limit,
            said.overlap,
            said.queue,
            said.priority,
            said.fair_key,
            said.paused,
            next_at,
        )
        return await self._reply(row, said.name)

    async def get(self, request: Request) -> dict[str, Any]:
        """`schedule.get`."""
        name = parse(ScheduleRef, request.data).name
        return await self._reply(await self._pool.fetchrow(_SQL["get"], name), name)

    async def list(self, request: Request) -> dict[str, Any]:
        """`schedule.list`: by name, a page at a time."""
        said = parse(ScheduleList, request.data)
        rows = await self._pool.fetch(_SQL["list"], said.agent, said.cursor, said.limit + 1)
        cursor = rows[said.limit - 1]["name"] if len(rows) > said.limit else None
        shown = [_shown(row) for row in await open_columns(self._pool, rows[: said.limit], SCHEDULE)]
        return {"status": "success", "schedules": shown, "next_cursor": cursor}

    async def pause(self, request: Request) -> dict[str, Any]:
        """`schedule.pause`: no moment becomes a run until `schedule.resume`."""
        name = parse(ScheduleRef, request.data).name
        return await self._reply(await self._pool.fetchrow(_SQL["pause"], name), name)

    async def resume(self, request: Request) -> dict[str, Any]:
        """`schedule.resume`: go on with the next moment from now; what passed meanwhile is for `backfill`."""
        name = parse(ScheduleRef, request.data).name
        schedule = await self._schedule(name)
        row = await self._pool.fetchrow(_SQL["resume"], name, schedule.next_after(self._clock.now()))
        return await self._reply(row, name)

    async def delete(self, request: Request) -> dict[str, Any]:
        """`schedule.delete`: the schedule goes, its runs stay; one that an agent's code declares stays with it."""
        name = parse(ScheduleRef, request.data).name
        gone = await self._pool.fetchrow(_SQL["delete"], name, SILENT)
        if gone is None and await self._pool.fetchval(_SQL["get"], name) is not None:
            agent = name.split(".")[1]
            raise Conflict(
                f"schedule {name!r} is declared by the code of agent {agent!r}: pause it, or take it out there"
            )
        return await self._reply(gone, name)

    async def backfill(self, request: Request) -> dict[str, Any]:
        """`schedule.backfill`: runs for moments that have none, also while the schedule is paused."""
        said = parse(ScheduleBackfill, request.data)
        if said.to > self._clock.now():
            raise InvalidRequest("field 'to' lies in the future: the schedule itself sees to that", fields=["to"])
        if said.since > said.to:
            raise InvalidRequest("field 'from' is later than 'to'", fields=["from"])
        schedule = await self._schedule(said.name)
        moments = await asyncio.to_thread(schedule.between, said.since, said.to, MOST + 1)
        if len(moments) > MOST:
            raise InvalidRequest(f"field 'to': more than {MOST} moments; take them in parts", fields=["to"])
        row = await self._pool.fetchrow(_SQL["get"], said.name)
        if row is None:
            raise _unknown(said.name)
        [opened] = await open_columns(self._pool, [row], SCHEDULE)
        if isinstance(opened["task"], Unreadable):
            raise opened["task"]
        starts = [start_of(opened, at) for at in moments]
        statuses = await runs.accept(self._pool, starts) if starts else {}
        made = [start.run_id for start in starts if statuses[start.run_id] == "accepted"]
        for run_id in made:
            runs.wake(self._nats, run_id, row["agent_name"])
        return {"status": "success", "name": said.name, "moments": len(moments), "run_ids": made}

    async def _reply(self, row: asyncpg.Record | None, name: str) -> dict[str, Any]:
        if row is None:
            raise _unknown(name)
        [opened] = await open_columns(self._pool, [row], SCHEDULE)
        return {"status": "success", "schedule": _shown(opened)}

    async def _schedule(self, name: str) -> Schedule:
        row = await self._pool.fetchrow(_SQL["get"], name)
        if row is None:
            raise _unknown(name)
        return await read_schedule(row["cron"], row["timezone"])


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no schedule {name!r}; `schedule.list` has those there are")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        "name": row["name"],
        "agent": row["agent_name"],
        "workflow": row["workflow"],
        "cron": row["cron"],
        "timezone": row["timezone"],
        "missed": row["missed"],
        "missed_limit": row["missed_limit"],
        "overlap": row["overlap"],
        "queue": row["queue_name"],
        "priority": row["priority"],
        "fair_key": row["fair_key"],
        "paused": row["paused"],
        "declared": row["declared"],
        "retired_at": None if row["retired_at"] is None else row["retired_at"].isoformat(),
        "next_at": None if row["next_at"] is None or row["paused"] else row["next_at"].isoformat(),
        "last_at": None if row["last_at"] is None else row["last_at"].isoformat(),
        "last_run_id": row["last_run_id"],
        "error": row["error"],
    }
    if isinstance(row["task"], Unreadable):
        return {**shown, "error": shown["error"] or str(row["task"])}
    return shown if row["task"] is None else {**shown, "task": decode(row["task"])}
