"""Conversations: say something, read what was said, forget it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from perdure.agent import conversations
from perdure.edge import models
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.replies import ERRORS, Cursor, IdempotencyKey, Limit, SessionId, reply, run_id_of
from perdure.edge.roles import Operator, Viewer
from perdure.errors import InvalidRequest, NotFound, RunFailed, TooLarge
from perdure.fields import AgentName
from perdure.subjects import new_run_id

router = APIRouter(tags=["conversations"], responses=ERRORS)

SHOWN: Final = 200


@router.post(
    "/chat",
    response_model=models.Said,
    responses={202: {"model": models.Said, "description": "No answer yet: `status` says how the run is; it goes on."}},
    summary="Say something to an agent",
)
async def chat(body: models.Chat, request: Request, caller: Operator, key: IdempotencyKey = None) -> Response:
    """Start a turn of a conversation and wait for the answer, at most `timeout` seconds."""
    door = door_of(request)
    agent = door.agent(caller, body.agent)
    run_id = caller.own(run_id_of(key, None, agent) or new_run_id())
    # with a key, the conversation that it begins is the same at every repeat
    session = caller.own(body.session_id, field="session_id") if body.session_id else run_id
    run = await door.client.start(agent, body.prompt, run_id=run_id, session_id=session)
    said = {"session_id": session, "run_id": run.run_id}
    try:
        ended = await run.ended(body.timeout)
    except TimeoutError:
        status = (await run.details(steps=False))["status"]
        return reply({**said, "response": None, "status": status}, 202)
    if ended["status"] != "completed":
        raise RunFailed(run.run_id, ended["status"], ended.get("error"))
    return reply({**said, "response": ended.get("output"), "status": "completed"})


@router.get("/history/{session_id}", response_model=models.History, summary="Read a conversation")
async def history(
    session_id: SessionId,
    request: Request,
    caller: Viewer,
    agent: Annotated[AgentName | None, Query(description="Whose, when several have one of this id.")] = None,
    limit: Limit = SHOWN,
    cursor: Cursor = None,
) -> Response:
    """The messages of a conversation, in their order."""
    door = door_of(request)
    if cursor is not None and not (cursor.isdecimal() and len(cursor) < 19):
        raise InvalidRequest("parameter 'cursor': give the next_cursor of the page before, unchanged")
    session = caller.known(session_id)
    asked = {
        "session_id": session,
        "agent": (await _agents(door, caller, session, agent))[0],
        "after": int(cursor or 0),
        "limit": limit,
    }
    found = await _page(door, asked)
    shown = [{"role": "", "content": None, **message} for message in found["history"]]
    following = found["next_after"]
    return reply(
        {
            "session_id": session,
            "agent": found["agent"],
            "history": shown,
            "next_cursor": None if following is None else str(following),
        }
    )


@router.post("/reset_session", response_model=models.Forgotten, summary="Forget a conversation")
async def reset_session(body: models.Session, request: Request, caller: Operator) -> Response:
    """Forget every message of a conversation. In the middle of a turn: 409."""
    door = door_of(request)
    session = caller.known(body.session_id)
    count = 0
    for agent in await _agents(door, caller, session, body.agent):
        said = {"session_id": session, "agent": agent}
        count += (await door.client.request("session.reset", said))["forgotten"]
    return reply({"status": "success", "session_id": session, "messages": count})


async def _page(door: Door, asked: dict[str, Any]) -> dict[str, Any]:
    """A page of messages; a smaller one when they are too large for one reply."""
    while True:
        try:
            return await door.client.request("session.history", asked, repeat=True)
        except TooLarge:
            if asked["limit"] == 1:
                raise
            asked = {**asked, "limit": asked["limit"] // 2}


async def _agents(door: Door, caller: Caller, session: str, agent: str | None) -> list[str]:
    """The agents that have a conversation of this id, the newest first. Raises `NotFound`."""
    if not caller.sees_id(session):
        raise NotFound(f"there is no session {session!r}")
    if agent is not None:
        return [door.agent(caller, agent)]
    found = [name for name in await conversations.find(door.pool, session) if door.shows(caller, name, session)]
    if not found:
        raise NotFound(f"there is no session {session!r}")
    return found
