"""Configuration of agents: what the ConfigManager says and does."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response

from perdure import subjects
from perdure.config.fetch import fetch_reply
from perdure.edge import models
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.replies import ERRORS, Cursor, named, reply
from perdure.edge.roles import Admin, Viewer
from perdure.errors import Conflict

router = APIRouter(prefix="/config", tags=["configuration"], responses=ERRORS)

ATTEMPTS: Final = 5
_GLOBAL: Final = "_global"  # the layer `*` as a token of a subject

Layer = Annotated[str, Path(max_length=64, description="An agent, or `*` for all.", examples=["assistant"])]


def _token(door: Door, caller: Caller, agent: str) -> str:
    caller.need_platform()
    if agent in (subjects.GLOBAL_LAYER, _GLOBAL):
        if door.only is None and caller.agents is None:
            return _GLOBAL
        agent = subjects.GLOBAL_LAYER
        caller.need_agent(agent)
    return door.agent(caller, named(agent))


async def _set(door: Door, caller: Caller, token: str, body: dict[str, Any]) -> dict[str, Any]:
    return await door.client.request(subjects.config_set(token), {**body, "changed_by": caller.name}, timeout=10)


@router.get("/{agent}", response_model=models.Configuration, summary="Read an agent's configuration")
async def get_config(agent: Layer, request: Request, caller: Viewer) -> Response:
    """What the agent gets: its own values over those of all agents."""
    door = door_of(request)
    subject = subjects.config_get(_token(door, caller, agent))
    found = await fetch_reply(door.nats, subject, {})
    return reply(found, headers={"ETag": f'"{found["revision"]}"'})


@router.patch("/{agent}", response_model=models.Configuration, summary="Change an agent's configuration")
async def patch_config(agent: Layer, body: models.ConfigChange, request: Request, caller: Admin) -> Response:
    """Put values, and take away those that are null, in one revision; live in the agent's processes at once."""
    door = door_of(request)
    return reply(await _set(door, caller, _token(door, caller, agent), body.model_dump(exclude_unset=True)))


@router.put("/{agent}", response_model=models.Configuration, summary="Replace an agent's configuration")
async def put_config(agent: Layer, body: models.ConfigWhole, request: Request, caller: Admin) -> Response:
    """Make these values the agent's own, and no others, in one revision."""
    door = door_of(request)
    token = _token(door, caller, agent)
    expected = body.expected_revision
    for attempt in range(1, ATTEMPTS + 1):
        own = await fetch_reply(door.nats, subjects.config_get(token), {"own": True})
        gone = dict.fromkeys(own["configurations"].keys() - body.configurations.keys())
        values = {**body.configurations, **gone}
        if not values:
            return reply(own)
        # what was read must still stand when it is replaced
        revision = (await fetch_reply(door.nats, subjects.config_get(token), {}))["revision"]
        try:
            said = {"configurations": values, "expected_revision": revision if expected is None else expected}
            return reply(await _set(door, caller, token, said))
        except Conflict:
            if expected is not None or attempt == ATTEMPTS:
                raise
    raise AssertionError  # the loop returns or raises


@router.get("/{agent}/history", response_model=models.ConfigHistory, summary="Read the history of a configuration")
async def config_history(
    agent: Layer,
    request: Request,
    caller: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 50,
    cursor: Cursor = None,
) -> Response:
    """The last changes of the agent's own values, newest first."""
    door = door_of(request)
    asked: dict[str, Any] = {"limit": limit} | ({} if cursor is None else {"cursor": cursor})
    subject = subjects.config_history(_token(door, caller, agent))
    return reply(await door.client.request(subject, asked, timeout=10))


@router.post("/{agent}/rollback", response_model=models.Configuration, summary="Set a configuration back")
async def rollback(agent: Layer, body: models.Rollback, request: Request, caller: Admin) -> Response:
    """Make the agent's own values what they were at a revision; that is a new revision."""
    door = door_of(request)
    subject = subjects.config_rollback(_token(door, caller, agent))
    return reply(await door.client.request(subject, {"revision": body.revision, "changed_by": caller.name}, timeout=10))
