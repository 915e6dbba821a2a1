"""Agents for clients of AG-UI: a run is started by their input, and told of in their events."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Request, Response
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from perdure.edge import sse
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.openai_common import agent_of, read_messages
from perdure.edge.replies import ERRORS, STREAM
from perdure.edge.roles import Operator
from perdure.errors import InvalidRequest
from perdure.fields import Id
from perdure.messages import Message
from perdure.subjects import new_run_id

router = APIRouter(tags=["ag-ui"], responses=ERRORS)

Format = Literal["perdure", "ag-ui"]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=256, description="Of the last event you have.")
]
Place = tuple[int, int, int]
LAST: Final = 999_999  # the place of a run's last event: who has it has all


class Input(Message):
    """What a client of AG-UI sends (`RunAgentInput`); `state`, `context` and `forwardedProps` are not looked at."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        json_schema_extra={
            "example": {
                "threadId": "talk",
                "runId": "r-1",
                "messages": [{"id": "m-1", "role": "user", "content": "Who are you?"}],
                "tools": [],
                "context": [],
            }
        },
    )

    thread_id: Id = Field(description="The conversation; it is kept here.")
    run_id: Id | None = Field(None, description="The same id and message again are the same run.")
    messages: list[Any] = Field(min_length=1, max_length=10_000)
    tools: list[Any] | None = Field(None, max_length=0, description="Agents call tools of their own.")


@router.post("/agents/{name}/ag-ui", response_class=Response, responses=STREAM, summary="Run an agent for AG-UI")
async def run_for_ui(name: str, body: Input, request: Request, caller: Operator, last: LastEventId = None) -> Response:
    """A run of an agent for the newest message of the user, as a stream of AG-UI events.

    The same request with `Last-Event-ID` goes on after that event, at any gateway.
    """
    door = door_of(request)
    after = place(last, None)
    agent = await agent_of(door, caller, name)
    prompt, _ = read_messages(body.messages, "messages")
    run_id = caller.own(body.run_id or new_run_id())
    session = caller.own(body.thread_id, field="threadId")
    run = await door.client.start(agent, prompt, run_id=run_id, session_id=session)
    return await stream(door, caller, {"run_id": run.run_id, "session_id": session}, after)


async def stream(door: Door, caller: Caller, run: dict[str, Any], after: Place | None) -> Response:
    """A run's events in the form of AG-UI, after a place."""
    library = await asyncio.to_thread(import_module, "perdure.edge.agui")
    return sse.EventStream(door, library.pieces(door, run, after), still=lambda: door.gate.still(caller))


def place(given: str | None, after: str | None) -> Place | None:
    """The place of the last event seen. Raises `InvalidRequest`."""
    said = given if given not in (None, "") else after
    if said is None:
        return None
    parts = said.split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise InvalidRequest(f"{said!r} is no event's id: give the id of the last event you have, or leave it out")
    return int(parts[0]), int(parts[1]), int(parts[2])
