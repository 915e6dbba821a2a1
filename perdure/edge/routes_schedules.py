"""Queues, and schedules. A tenant's schedules have names that begin with its own, and so have the ids of their runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response

from perdure.edge import models
from perdure.edge.callers import MARK, PLATFORM, Caller
from perdure.edge.door import Door, door_of
from perdure.edge.replies import ERRORS, Limit, reply
from perdure.edge.roles import Operator, Viewer
from perdure.errors import Forbidden, NotFound
from perdure.fields import AgentName
from perdure.messages import ScheduleList, ScheduleSpec
from perdure.messages import ScheduleName as Name
from perdure.subjects import SCHEDULE_NAME

router = APIRouter(responses=ERRORS)

ScheduleName = Annotated[
    str, Path(pattern=f"^{SCHEDULE_NAME.pattern}$", description="A schedule.", examples=["nightly"])
]
QueueName = Annotated[AgentName, Path(description="A queue.")]


@router.get("/queues", response_model=models.Queues, tags=["queues"], summary="List queues")
async def list_queues(
    request: Request,
    caller: Viewer,
    limit: Limit = 500,
    cursor: Annotated[AgentName | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Every queue with its depth, its limits, and why its runs wait. They are the platform's: tenants share them."""
    page = await _queues(request, caller, {})
    found = [each for each in page["queues"] if each["queue"] > (cursor or "")]
    following = found[limit - 1]["queue"] if len(found) > limit else None
    return reply({**page, "queues": found[:limit], "next_cursor": following})


@router.get("/queues/{queue}", response_model=models.Queues, tags=["queues"], summary="Look at a queue")
async def get_queue(queue: QueueName, request: Request, caller: Viewer) -> Response:
    """One queue, as a list of one."""
    return reply(await _queues(request, caller, {"queue": queue}))


async def _queues(request: Request, caller: Caller, asked: dict[str, Any]) -> dict[str, Any]:
    caller.need_platform()
    if caller.agents is not None:
        raise Forbidden(f"{caller.name} may use some agents only, and a queue has the runs of all")
    return await door_of(request).client.request("queue.list", asked, repeat=True)


@router.get("/schedules", response_model=models.Schedules, tags=["schedules"], summary="List schedules")
async def list_schedules(
    request: Request,
    caller: Viewer,
    agent: Annotated[AgentName | None, Query(description="Of this agent.")] = None,
    limit: Limit = 50,
    cursor: Annotated[Name | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Schedules by name."""
    door = door_of(request)
    if agent is not None:
        agent = door.agent(caller, agent)
    mark = "" if caller.tenant in (None, PLATFORM) else f"{caller.tenant}{MARK}"
    cursor = max(cursor or mark, mark) or None  # a tenant's own stand together
    asked = ScheduleList(agent=agent or door.only, limit=limit, cursor=cursor).model_dump(exclude_none=True)
    page = await door.client.request("schedule.list", asked, repeat=True)
    shown = [each for each in page["schedules"] if door.shows(caller, each["agent"], each["name"])]
    following = page["next_cursor"]
    if following is not None and not following.startswith(mark):
        following = None
    return reply({"schedules": shown, "next_cursor": following})


@router.get("/schedules/{name}", response_model=models.Schedule, tags=["schedules"], summary="Look at a schedule")
async def get_schedule(name: ScheduleName, request: Request, caller: Viewer) -> Response:
    """A schedule, with its next moment and its last run."""
    return reply(await _look(door_of(request), caller, name))


@router.put("/schedules/{name}", response_model=models.Schedule, tags=["schedules"], summary="Make a schedule")
async def set_schedule(
    name: ScheduleName,
    body: Annotated[ScheduleSpec, Body(examples=[{"agent": "reporter", "cron": "0 6 * * *"}])],
    request: Request,
    caller: Operator,
) -> Response:
    """Make a schedule, or change it: the moments of `cron` in `timezone` become runs of `agent`."""
    door = door_of(request)
    agent = door.agent(caller, body.agent)
    own = name if "." in name else caller.own(name, field="name")  # which the scheduler refuses
    try:
        await _look(door, caller, name)  # one of this name that the caller may not see is not taken over
    except NotFound:
        if await _there(door, own):
            raise
    said = body.model_dump(exclude_unset=True, mode="json") | {"name": own, "agent": agent}
    return reply((await door.client.request("schedule.set", said, repeat=True))["schedule"])


@router.delete("/schedules/{name}", response_model=models.Schedule, tags=["schedules"], summary="Delete a schedule")
async def delete_schedule(name: ScheduleName, request: Request, caller: Operator) -> Response:
    """The schedule goes, its runs stay."""
    return reply(await _do("delete", name, request, caller))


@router.post("/schedules/{name}/pause", response_model=models.Schedule, tags=["schedules"], summary="Pause a schedule")
async def pause_schedule(name: ScheduleName, request: Request, caller: Operator) -> Response:
    """No moment becomes a run until it is resumed."""
    return reply(await _do("pause", name, request, caller))


@router.post(
    "/schedules/{name}/resume", response_model=models.Schedule, tags=["schedules"], summary="Resume a schedule"
)
async def resume_schedule(name: ScheduleName, request: Request, caller: Operator) -> Response:
    """Go on with the next moment from now; what passed meanwhile is for `backfill`."""
    return reply(await _do("resume", name, request, caller))


@router.post(
    "/schedules/{name}/backfill", response_model=models.Backfilled, tags=["schedules"], summary="Make up for moments"
)
async def backfill(name: ScheduleName, body: models.Backfill, request: Request, caller: Operator) -> Response:
    """Runs for the moments of a time that have none yet, at most 1,000."""
    door = door_of(request)
    known = (await _look(door, caller, name))["name"]
    said = body.model_dump(by_alias=True, mode="json") | {"name": known}
    return reply(await door.client.request("schedule.backfill", said, repeat=True, timeout=30))


async def _do(what: str, name: str, request: Request, caller: Caller) -> dict[str, Any]:
    door = door_of(request)
    known = (await _look(door, caller, name))["name"]
    return (await door.client.request(f"schedule.{what}", {"name": known}))["schedule"]  # type: ignore[no-any-return]


async def _look(door: Door, caller: Caller, name: str) -> dict[str, Any]:
    """A schedule that the caller may see. Raises `NotFound`."""
    known = name if "." in name else caller.known(name)  # what code declares is the platform's
    unseen = NotFound(f"there is no schedule {name!r}")
    if not caller.sees_id(known):
        raise unseen
    try:
        found: dict[str, Any] = (await door.client.request("schedule.get", {"name": known}, repeat=True))["schedule"]
    except NotFound:
        raise unseen from None
    if not door.shows(caller, found["agent"], known):
        raise unseen
    return found


async def _there(door: Door, name: str) -> bool:
    try:
        await door.client.request("schedule.get", {"name": name}, repeat=True)
    except NotFound:
        return False
    return True
