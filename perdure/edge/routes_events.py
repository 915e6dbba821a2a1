"""Event streams: of one run, and of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from perdure.client.types import RunEvent
from perdure.edge import models, sse
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.replies import ERRORS, STREAM, RunId, SessionId, reply
from perdure.edge.roles import Viewer
from perdure.edge.routes_agui import LAST, Format, LastEventId, Place, place, stream
from perdure.edge.tickets import LIVES
from perdure.errors import InvalidRequest, NotFound
from perdure.store.queries import load_queries
from perdure.subjects import RUN_ID

router = APIRouter(tags=["events"], responses=ERRORS)
_SQL = load_queries("edge.sql")

NEXT_TURN: Final = 0.5  # seconds between looks for the next run of a conversation
BATCH: Final = 50

After = Annotated[str | None, Query(max_length=256, description="The same, for who cannot send the header.")]


@router.get(
    "/runs/{run_id}/events",
    response_class=Response,
    responses={**STREAM, 204: {"description": "The end was the last event you have: do not come back."}},
    summary="Follow a run",
)
async def run_events(
    run_id: RunId,
    request: Request,
    caller: Viewer,
    last: LastEventId = None,
    after: After = None,
    form: Annotated[Format, Query(alias="format", description="`ag-ui`: as events of that protocol.")] = "perdure",
) -> Response:
    """A run's events from its first on, then as they come, until its end.

    `id` is the event's seq and `event` its type. Who comes back with `Last-Event-ID` gets what has come since, without
    a gap and without a double. Events that pass by (tokens, progress) carry the seq of the last event before them;
    those that were missed while away are not sent again, unless `?after=SEQ.INDEX` asks for them.
    With `format=ag-ui` the ids are others, to come back with in the same way.
    """
    door = door_of(request)
    if form == "ag-ui":
        return await run_events_for_ui(run_id, door, caller, place(last, after))
    return await events_of(door, caller, run_id, *sse.position(last, after))


async def events_of(
    door: Door, caller: Caller, run_id: str, seq: int | None = None, index: int | None = None
) -> Response:
    """The events of a run after a place: at once if it has ended and they are few, else as they come."""
    ending = door.ended(caller, run_id) if index is None else None
    if ending is None:
        run = await door.find(caller, run_id)
        if seq is not None and run["end_seq"] is not None and run["end_seq"] <= seq:
            return Response(status_code=204)
        ending = await door.endings.read(run) if index is None else None
        if ending is None:
            pieces = _of_run(door, run, seq, index)
            return sse.EventStream(door, pieces, still=lambda: door.gate.still(caller))
    if seq is not None and ending.end_seq <= seq:
        return Response(status_code=204)
    return sse.sent(ending.after(seq))


async def run_events_for_ui(run_id: str, door: Door, caller: Caller, after: Place | None) -> Response:
    """The same as AG-UI tells it."""
    run = await door.look(caller, run_id)
    if after is not None and run.get("end_seq") is not None and after[0] > run["end_seq"] and after[2] == LAST:
        return Response(status_code=204)
    return await stream(door, caller, run, after)


async def _of_run(door: Door, run: Mapping[str, Any], after: int | None, index: int | None) -> sse.Pieces:
    async with aclosing(door.client.run(run["run_id"]).events(after=after, index=index, known=run)) as events:
        async for event in events:
            yield sse.event(event, kind=event["type"], id=str(event["seq"]))


@router.get("/events/{session_id}", response_class=Response, responses=STREAM, summary="Follow a conversation")
async def session_events(
    session_id: SessionId, request: Request, caller: Viewer, last: LastEventId = None, after: After = None
) -> Response:
    """The events of all runs of a conversation, one run after the other; it does not end by itself.

    `id` is `RUN_ID:SEQ`. Without `Last-Event-ID` it begins with the conversation's first run.
    """
    door = door_of(request)
    session = caller.known(session_id)
    if not caller.sees_id(session):
        raise NotFound(f"there is no session {session_id!r}")
    given = last if last not in (None, "") else after
    run_id, seq, index = None, None, None
    if given is not None:
        run_id, _, rest = given.partition(":")
        if not RUN_ID.fullmatch(run_id):
            raise InvalidRequest(f"{given!r} is no event's id: it is RUN_ID:SEQ of the last event you have")
        seq, index = sse.position(rest, None)
        await door.find(caller, run_id)
    pieces = _of_session(door, caller, session, run_id, seq, index)
    return sse.EventStream(door, pieces, still=lambda: door.gate.still(caller))


@router.post("/tickets", response_model=models.Ticket, summary="Get a ticket for a stream")
async def ticket(request: Request, caller: Viewer) -> Response:
    """A ticket for one event stream, for readers that can send no header: `?ticket=…`, once, within a minute."""
    given = await door_of(request).gate.tickets.give(caller)
    return reply({"ticket": given, "expires_in": LIVES})


async def _of_session(
    door: Door, caller: Caller, session_id: str, run_id: str | None, seq: int | None, index: int | None
) -> sse.Pieces:
    turn = 0
    if run_id is not None:
        turn = await door.pool.fetchval(_SQL["turn_of"], run_id) or 0
        async for event in _events(door, run_id, seq, index):
            yield sse.event(event, kind=event["type"], id=f"{run_id}:{event['seq']}")
    while True:
        rows = await door.pool.fetch(_SQL["turns"], session_id, turn, BATCH)
        for row in rows:
            turn = row["turn"]
            if not door.shows(caller, row["agent_name"], row["run_id"]):
                continue
            async for event in _events(door, row["run_id"], None, None):
                yield sse.event(event, kind=event["type"], id=f"{row['run_id']}:{event['seq']}")
        if not rows:
            await asyncio.sleep(NEXT_TURN)


async def _events(door: Door, run_id: str, seq: int | None, index: int | None) -> AsyncGenerator[RunEvent]:
    async with aclosing(door.client.run(run_id).events(after=seq, index=index)) as events:
        async for event in events:
            yield event
