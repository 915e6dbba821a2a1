"""The client's functions for schedules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from perdure import subjects
from perdure.client.connection import Connection
from perdure.errors import InvalidRequest

if TYPE_CHECKING:
    from perdure.messages import Overlap

_UNSET: Final = object()


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """Some schedules by name, each as `schedule.list` gives it; `next_cursor` is None on the last page."""

    schedules: list[dict[str, Any]]
    next_cursor: str | None


class Schedules:
    """What `Client` can do with schedules: cron expressions whose moments become runs."""

    _connection: Connection

    async def set_schedule(
        self,
        name: str,
        agent: str,
        cron: str,
        *,
        timezone: str = "UTC",
        task: Any = _UNSET,
        workflow: str = "run",
        missed: Literal["skip", "latest", "all"] = "latest",
        missed_limit: int = 100,
        overlap: Overlap = "allow",
        paused: bool | None = None,
        queue: str | None = None,
        priority: int = 0,
        fair_key: str | None = None,
    ) -> dict[str, Any]:
        """Make a schedule, or change the one of this name: moments of `cron` in `timezone` become runs of `agent`.

        `cron` has five fields, or is like `@daily` or `@every 30s`.

        A `task` that is an object also gets `scheduled_for`, the moment in ISO 8601; without a task that is all.
        `missed`: moments at which no scheduler was up are skipped, become one run for the latest, or one each (the
        newest `missed_limit`). `overlap`: `skip` leaves a moment out while the run of an earlier one goes on,
        `buffer_one` while that has not begun. Raises `InvalidRequest` for an expression or a zone that makes no sense.
        """
        said = {
            "name": name,
            "agent": _agent(agent),
            "cron": cron,
            "timezone": timezone,
            "workflow": workflow,
            "missed": missed,
            "missed_limit": missed_limit,
            "overlap": overlap,
            "queue": queue,
            "priority": priority,
            "fair_key": fair_key,
            "paused": paused,
        }
        if task is not _UNSET:
            said["task"] = task
        return await self._schedule("set", said)

    async def get_schedule(self, name: str) -> dict[str, Any]:
        """A schedule with its next and its last moment. Raises `NotFound`."""
        return await self._schedule("get", {"name": name})

    async def schedules(self, *, agent: str | None = None, limit: int = 50, cursor: str | None = None) -> SchedulePage:
        """The schedules by name, `limit` (1 to 500) at a time; `cursor` is the `next_cursor` of the page before."""
        said = {"agent": None if agent is None else _agent(agent), "cursor": cursor}
        wanted = {key: value for key, value in said.items() if value is not None}
        reply = await self._connection.insist(f"{subjects.SCHEDULE}.list", {**wanted, "limit": limit})
        return SchedulePage(reply["schedules"], reply.get("next_cursor"))

    async def pause_schedule(self, name: str) -> dict[str, Any]:
        """Let no moment become a run until `resume_schedule`. Raises `NotFound`."""
        return await self._schedule("pause", {"name": name})

    async def resume_schedule(self, name: str) -> dict[str, Any]:
        """Go on with the next moment from now; what passed is for `backfill_schedule`. Raises `NotFound`."""
        return await self._schedule("resume", {"name": name})

    async def delete_schedule(self, name: str) -> None:
        """Take a schedule away; its runs stay. Raises `NotFound`; `Conflict` for one that an agent's code declares."""
        await self._connection.request(f"{subjects.SCHEDULE}.delete", {"name": name})

    async def backfill_schedule(self, name: str, since: datetime, to: datetime) -> list[str]:
        """Make runs for the moments from `since` to `to` (at most 1,000) that have none; the ids of the new ones."""
        said = {"name": name, "from": since, "to": to}
        reply = await self._connection.insist(f"{subjects.SCHEDULE}.backfill", said)
        return list(reply["run_ids"])

    async def _schedule(self, verb: str, said: dict[str, Any]) -> dict[str, Any]:
        reply = await self._connection.insist(f"{subjects.SCHEDULE}.{verb}", said)
        return dict(reply["schedule"])


def _agent(name: str) -> str:
    try:
        return subjects.agent_name(name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
