"""How this process is, and which agents are there."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from perdure.edge import models
from perdure.edge.door import door_of
from perdure.edge.replies import ERRORS, Cursor, Limit, reply
from perdure.edge.roles import Viewer
from perdure.errors import InvalidRequest
from perdure.observe.exporter import TEXT, render
from perdure.subjects import AGENT_NAME

router = APIRouter(tags=["operation"], responses=ERRORS)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=models.Health, summary="Is it alive?")
async def healthz() -> Response:
    """200 as long as the process answers: restart it when this fails."""
    return reply({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    response_model=models.Health,
    responses={503: {"model": models.Health, "description": "A part that is needed is away."}},
    summary="Can it work?",
)
async def readyz(request: Request) -> Response:
    """200 while NATS and Postgres answer and the process does not stop: send no requests otherwise."""
    door = door_of(request)
    found = await door.health.report()
    stopping = door.stopping.is_set()
    # what the checks say in words may name servers: without a key their states are told alone
    checks = {name: {"status": each["status"]} for name, each in found["checks"].items()}
    status = "critical" if stopping else found["status"]
    return reply({"status": status, "checks": checks}, 503 if status == "critical" else 200)


@router.get("/metrics", response_class=Response, summary="Counters for Prometheus")
async def tell_metrics(request: Request, caller: Viewer) -> Response:
    """What this process counts."""
    caller.need_platform()
    return Response(await render(door_of(request).observed), headers={"Content-Type": TEXT})


@router.get("/agents", response_model=models.Agents, summary="List agents")
async def list_agents(request: Request, caller: Viewer, limit: Limit = 500, cursor: Cursor = None) -> Response:
    """The agents with live processes, by name."""
    door = door_of(request)
    if cursor is not None and not AGENT_NAME.fullmatch(cursor):
        raise InvalidRequest("parameter 'cursor': give the next_cursor of the page before, unchanged")
    found = [
        {"name": each["agent"], "replicas": each["replicas"], "since": each["since"]}
        for each in await door.agents(caller)
        if each["agent"] > (cursor or "")
    ]
    following = found[limit - 1]["name"] if len(found) > limit else None
    return reply({"agents": found[:limit], "next_cursor": following})
