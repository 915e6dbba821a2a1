"""Runs: start, look, steer, decide."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import AwareDatetime

from perdure.edge import models
from perdure.edge.callers import PLATFORM
from perdure.edge.door import door_of
from perdure.edge.replies import (
    ERRORS,
    Cursor,
    IdempotencyKey,
    Limit,
    RunId,
    reply,
)
from perdure.edge.roles import Operator, Viewer
from perdure.edge.tenants import tenant_runs
from perdure.errors import InvalidRequest
from perdure.fields import AgentName, Id, Name, RunStatus
from perdure.messages import RunApprovals
from perdure.subjects import new_run_id

router = APIRouter(tags=["runs"], responses=ERRORS)


@router.get("/runs", response_model=models.Runs, summary="List runs")
async def list_runs(
    request: Request,
    caller: Viewer,
    agent: Annotated[AgentName | None, Query(description="Of this agent.")] = None,
    status: Annotated[list[RunStatus] | None, Query(description="In this state, or one of several.")] = None,
    workflow: Annotated[Name | None, Query(description="Of this workflow.")] = None,
    version: Annotated[str | None, Query(max_length=256, description="Of this version of it.")] = None,
    queue: Annotated[AgentName | None, Query(description="Of this queue.")] = None,
    created_after: Annotated[AwareDatetime | None, Query(description="ISO 8601, with a time zone.")] = None,
    created_before: Annotated[AwareDatetime | None, Query(description="ISO 8601, with a time zone.")] = None,
    session_id: Annotated[Id | None, Query(description="Of this conversation.")] = None,
    parent_run_id: Annotated[Id | None, Query(description="Started by this run.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Runs, newest first."""
    door = door_of(request)
    if agent is not None:
        agent = door.agent(caller, agent)
    asked: dict[str, Any] = {
        "agent": agent or door.only,
        "status": status,
        "workflow": workflow,
        "version": version,
        "queue": queue,
        "created_after": created_after,
        "created_before": created_before,
        "session_id": session_id and caller.known(session_id),
        "parent_run_id": parent_run_id and caller.known(parent_run_id),
        "limit": limit,
        "cursor": cursor,
    }
    if caller.tenant not in (None, PLATFORM):
        shown, following = await tenant_runs(door.pool, caller.tenant, **asked)
        return reply({"runs": [run for run in shown if caller.uses(run["agent"])], "next_cursor": following})
    page = await door.client.list(**asked)
    shown = [run for run in page.runs if caller.sees(run["agent"], run["run_id"])]
    return reply({"runs": shown, "next_cursor": page.next_cursor})


@router.get("/runs/{run_id}", response_model=models.Run, summary="Look at a run")
async def get_run(
    run_id: RunId,
    request: Request,
    caller: Viewer,
    *,
    steps: Annotated[bool, Query(description="With its steps.")] = True,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Steps with a seq over this one alone.")] = 0,
) -> Response:
    """A run: its state, its task, its output or error, its steps."""
    door = door_of(request)
    run = await door.look(caller, run_id)
    return reply(await door.client.run(run["run_id"]).details(steps=steps, after=after))


@router.post("/runs/{run_id}/cancel", response_model=models.State, summary="Cancel a run")
async def cancel_run(run_id: RunId, request: Request, caller: Operator, body: models.Cancel | None = None) -> Response:
    """End a run and its children as `cancelled`; one that has ended stays as it is."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    reason = (body.reason if body else None) or f"cancelled by {caller.name}"
    return reply(await door.client.request("run.cancel", {"run_id": run_id, "reason": reason}, repeat=True))


@router.post("/runs/{run_id}/resume", response_model=models.State, summary="Resume a run")
async def resume_run(run_id: RunId, request: Request, caller: Operator) -> Response:
    """Bring back a failed, dead, blocked, paused or reviewed run; it goes on where it stood."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    return reply(await door.client.request("run.resume", {"run_id": run_id}))


@router.post("/runs/{run_id}/fork", response_model=models.State, summary="Fork a run")
async def fork_run(run_id: RunId, body: models.Fork, request: Request, caller: Operator) -> Response:
    """A new run that begins with this one's journal up to a step."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    return reply(
        await door.client.request(
            "run.fork", {"run_id": run_id, "step": body.step, "new_run_id": caller.own(new_run_id())}
        )
    )


@router.post("/runs/{run_id}/signal/{name}", response_model=models.State, summary="Send a signal")
async def signal_run(
    run_id: RunId,
    name: Name,
    request: Request,
    caller: Operator,
    payload: Annotated[Any, Body(description="The payload: any JSON, or nothing.", examples=[True])] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Send a signal; it is kept until the run waits for it. The same `Idempotency-Key` again counts once."""
    if isinstance(payload, bytes):  # what was not sent as JSON
        raise InvalidRequest("the body must be JSON, sent as application/json, or nothing")
    if name.startswith("approval:"):
        raise InvalidRequest("signals named approval:… are decisions: POST /runs/{run_id}/approvals/{call_id}")
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    said = {"run_id": run_id, "name": name, "payload": payload}
    if key is not None:
        said["id"] = key
    return reply(await door.client.request("run.signal", said, repeat=key is not None))


@router.post("/runs/{run_id}/approvals/{call_id}", response_model=models.State, summary="Decide about a tool call")
async def decide(run_id: RunId, call_id: Name, body: models.Decision, request: Request, caller: Operator) -> Response:
    """Approve a tool call, deny it, or let it be made with other arguments. A second decision: 409."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    said = body.model_dump(exclude_none=True)
    return reply(
        await door.client.request(
            "run.approve", {**said, "run_id": run_id, "call_id": call_id, "decided_by": caller.name}
        )
    )


@router.get("/approvals", response_model=models.Approvals, summary="List approvals")
async def list_approvals(
    request: Request,
    caller: Viewer,
    status: Annotated[
        str, Query(pattern="^(pending|approved|denied|edited|expired|any)$", description="In this state.")
    ] = "pending",
    agent: Annotated[AgentName | None, Query(description="Of this agent.")] = None,
    run_id: Annotated[Id | None, Query(description="Of this run.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Tool calls that wait for a person, newest first."""
    door = door_of(request)
    if agent is not None:
        agent = door.agent(caller, agent)
    run_id = run_id and caller.known(run_id)
    asked = {"status": status, "agent": agent or door.only, "run_id": run_id, "limit": limit, "cursor": cursor}
    said = RunApprovals.model_validate(asked).model_dump(exclude_none=True)
    page = await door.client.request("run.approvals", said, repeat=True)
    shown = [each for each in page["approvals"] if caller.sees(each["agent"], each["run_id"])]
    return reply({"approvals": shown, "next_cursor": page["next_cursor"]})
