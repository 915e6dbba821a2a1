"""Starts of runs: the route that is called most; see also `perdure.edge.lanes`."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Request, Response

from perdure.edge import models
from perdure.edge.door import Door, door_of
from perdure.edge.replies import ERRORS, IdempotencyKey, Prefer, named, reply, run_id_of, seconds_to_wait
from perdure.edge.roles import Operator
from perdure.messages import RunStart
from perdure.subjects import new_run_id

router = APIRouter(tags=["runs"], responses=ERRORS)
single = APIRouter(tags=["runs"], responses=ERRORS)
"""`POST /run`, for a process that serves one agent."""

PLAIN: Final = {"task", "workflow", "run_id", "session_id"}  # what most starts have, and nothing else
KEYS: Final = ("dedup_key", "debounce_key")  # what makes one run of several starts: within a tenant


async def start(
    door: Door, caller: Operator, name: str | None, body: RunStart, *, key: str | None = None, prefer: str | None = None
) -> Response:
    """Have a run accepted, and wait for it if that is preferred. Without a name it is one of the agent served here."""
    agent = door.agent(caller, named(name) if name is not None else str(door.only))
    session_id = body.session_id and caller.own(body.session_id, field="session_id")
    run_id = caller.own(run_id_of(key, body.run_id, agent) or new_run_id())
    more: dict[str, Any] = {}
    if not body.model_fields_set <= PLAIN:
        more = body.model_dump(exclude_unset=True, exclude=PLAIN)
    if body.callback is not None and (body.callback.subject or body.callback.secret):
        caller.need_platform()  # subjects of NATS and secrets of the scheduler are of no tenant
    more |= {name: caller.own_key(more[name], field=name) for name in KEYS if more.get(name) is not None}
    run = await door.client.start(
        agent, body.task, workflow=body.workflow, run_id=run_id, session_id=session_id, **more
    )
    said: dict[str, Any] = {"instance_id": run.run_id, "run_id": run.run_id, "status_url": f"/runs/{run.run_id}"}
    seconds = seconds_to_wait(prefer)
    if seconds is None:
        return reply(said)
    try:
        ended = await run.ended(seconds)
    except TimeoutError:
        ended = await run.details(steps=False)
    said |= {name: ended[name] for name in ("status", "output", "error") if name in ended}
    return reply(said, headers={"Preference-Applied": f"wait={seconds:g}"})


@router.post("/agents/{name}/run", response_model=models.Started, summary="Start a run")
async def run_agent(
    name: str,
    body: Annotated[RunStart, Body(examples=[{"task": "Write a haiku about programming."}])],
    request: Request,
    caller: Operator,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Start a run of an agent. When this answers the run is durable, whether or not a process of the agent is up."""
    return await start(door_of(request), caller, name, body, key=key, prefer=prefer)


@single.post("/run", response_model=models.Started, summary="Start a run")
async def run(
    body: Annotated[RunStart, Body(examples=[{"task": "Write a haiku about programming."}])],
    request: Request,
    caller: Operator,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Start a run of the agent that is served here."""
    return await start(door_of(request), caller, None, body, key=key, prefer=prefer)
