"""Runs that people stop, go on with and begin anew, one by one or many at once; and how runs are related."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from perdure.edge import models
from perdure.edge.door import door_of
from perdure.edge.replies import ERRORS, RunId, reply
from perdure.edge.roles import Operator, Viewer
from perdure.errors import InvalidRequest
from perdure.subjects import new_run_id

router = APIRouter(tags=["runs"], responses=ERRORS)

PATIENCE: Final = 60.0  # seconds for a page of many runs


@router.post("/runs/bulk", response_model=models.BulkDone, summary="Do something to many runs")
async def bulk(body: models.Bulk, request: Request, caller: Operator) -> Response:
    """One action on the next runs of a filter, those that the caller sees; ask again with `next_cursor` for the others.

    With `dry_run` they are counted, up to 100,000. Runs that come after the first page are left alone.
    """
    door = door_of(request)
    filtered = body.filter
    agent = filtered.agent or door.only
    if agent is not None:
        agent = door.agent(caller, agent)
    elif caller.agents is not None:
        raise InvalidRequest("field 'filter.agent': name one of the agents that this key is for")
    wanted = filtered.model_dump(exclude_none=True, mode="json") | ({} if agent is None else {"agent": agent})
    if filtered.session_id is not None:
        wanted["session_id"] = caller.known(filtered.session_id)
    if not filtered.model_dump(exclude_none=True) and not body.all:
        wanted = {}  # what the key or this process adds is not what was said
    said: dict[str, Any] = body.model_dump(exclude_none=True, mode="json") | {"filter": wanted}
    if caller.tenant is not None:
        said["tenant"] = caller.tenant
    said["reason"] = body.reason or f"{body.action} by {caller.name}"
    return reply(await door.client.request("run.bulk", said, timeout=PATIENCE))


@router.get("/runs/{run_id}/tree", response_model=models.Tree, summary="See a run's family")
async def tree(run_id: RunId, request: Request, caller: Viewer) -> Response:
    """Its parents, children, forks and restarts, from where the family begins; those that the caller sees."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    found = await door.client.request("run.tree", {"run_id": run_id}, repeat=True)
    runs = [run for run in found["runs"] if door.shows(caller, run["agent"], run["run_id"])]
    seen = {run["run_id"] for run in runs}
    for run in runs:
        if run["above"] not in seen:
            run["above"] = None
    return reply({**found, "root": found["root"] if found["root"] in seen else run_id, "runs": runs})


@router.post("/runs/{run_id}/pause", response_model=models.State, summary="Pause a run")
async def pause_run(run_id: RunId, request: Request, caller: Operator) -> Response:
    """It ends the steps under way, and begins nothing more until it is resumed."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    return reply(await door.client.request("run.pause", {"run_id": run_id}, repeat=True))


@router.post("/runs/{run_id}/terminate", response_model=models.State, summary="Terminate a run")
async def terminate_run(
    run_id: RunId, request: Request, caller: Operator, body: models.Cancel | None = None
) -> Response:
    """End a run and its children at once: none of their code runs any more, and nothing is undone."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    reason = (body.reason if body else None) or f"terminated by {caller.name}"
    return reply(await door.client.request("run.terminate", {"run_id": run_id, "reason": reason}, repeat=True))


@router.post("/runs/{run_id}/restart", response_model=models.State, summary="Restart a run")
async def restart_run(run_id: RunId, request: Request, caller: Operator) -> Response:
    """A new run with the task of this one, which stays as it is."""
    door = door_of(request)
    run_id = (await door.find(caller, run_id))["run_id"]
    said = {"run_id": run_id, "new_run_id": caller.own(new_run_id())}
    return reply(await door.client.request("run.restart", said, repeat=True))
