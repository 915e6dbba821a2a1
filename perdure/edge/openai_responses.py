"""`/v1/responses`: runs as responses. A response is a run, its id says which; `previous_response_id` is its session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ConfigDict, Field

from perdure.client.types import TERMINAL_EVENTS, RunEvent
from perdure.edge import sse
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.openai_chat import session_in
from perdure.edge.openai_common import PATIENCE, Spoken, agent_of, output_text, read_messages, start, tokens
from perdure.edge.replies import OPENAI, OPENAI_ERRORS, OPENAI_STREAM, IdempotencyKey, reply
from perdure.edge.roles import Operator, Viewer
from perdure.errors import InvalidRequest, NotFound
from perdure.messages import Message

router = APIRouter(prefix="/v1/responses", tags=["openai"], responses=OPENAI_ERRORS)

MARK: Final = "resp_"
_PLACES: Final = 8  # events of a response that one event of its run may become
_INDEXES: Final = 1_000_000  # events that pass by after one event of the journal
_STATUS: Final = {
    "pending": "queued",
    "completed": "completed",
    "cancelled": "cancelled",
    "failed": "failed",
    "dead": "failed",
    "blocked": "failed",
    "needs_review": "failed",
}

Parts = Iterator[tuple[str, dict[str, Any]]]
ResponseId = Annotated[
    str, Path(pattern=r"^resp_[A-Za-z0-9_-]{1,128}$", description="A response: `resp_` and its run.")
]


class ResponseRequest(Message):
    """What an OpenAI client sends. What shapes a model's answer is the agent's configuration, and ignored here."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_extra={"example": {"model": "assistant", "input": "Who are you?"}},
    )

    model: str = Field(max_length=100, description="An agent's name.")
    input: str | list[Any]
    instructions: str | None = Field(None, description="Told to the agent when a conversation begins.")
    previous_response_id: str | None = Field(None, pattern=r"^resp_[A-Za-z0-9_-]{1,128}$")
    background: bool | None = False
    stream: bool | None = False
    tools: list[Any] | None = Field(None, max_length=0, description="Agents call tools of their own.")
    metadata: dict[str, Any] | None = Field(None, description="`session_id`: a conversation that is kept here.")


@router.post("", response_class=Response, responses=OPENAI_STREAM, summary="Ask an agent")
async def create(body: ResponseRequest, request: Request, caller: Operator, key: IdempotencyKey = None) -> Response:
    """A run of an agent. With `background` it answers at once; with `stream` the answer comes as it is made."""
    door = door_of(request)
    agent = await agent_of(door, caller, body.model)
    said = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    prompt, before = read_messages(said, "input")
    if body.instructions:
        before = f"system: {body.instructions}\n{before}".strip()
    session = session_in(caller, body.metadata)
    if body.previous_response_id is not None:
        if session is not None:
            raise InvalidRequest("field 'previous_response_id': leave it out, or metadata.session_id")
        previous = await _run(door, caller, body.previous_response_id)
        session = str(previous["session_id"] or previous["run_id"])
    run, _ = await start(door, caller, agent, prompt, before, session=session, key=key)
    more: dict[str, Any] = {"previous_response_id": body.previous_response_id, "background": bool(body.background)}
    if body.stream:
        pieces = _pieces(door, run.run_id, -1, more)
        return sse.EventStream(door, pieces, still=lambda: door.gate.still(caller))
    if not body.background:
        with suppress(TimeoutError):  # the response says that it is in progress
            await run.ended(PATIENCE)
    return reply(response_of(await run.details(), **more))


@router.get("/{response_id}", response_class=Response, responses=OPENAI_STREAM, summary="Look at a response")
async def retrieve(
    response_id: ResponseId,
    request: Request,
    caller: Viewer,
    *,
    stream: Annotated[bool, Query(description="As events, from its first on.")] = False,
    starting_after: Annotated[
        int | None, Query(ge=0, lt=2**63, description="Only events with a greater sequence_number.")
    ] = None,
) -> Response:
    """A response; with `stream` its events again, from any gateway."""
    door = door_of(request)
    run = await _run(door, caller, response_id)
    if stream:
        pieces = _pieces(door, run["run_id"], -1 if starting_after is None else starting_after, {})
        return sse.EventStream(door, pieces, still=lambda: door.gate.still(caller))
    return reply(response_of(await door.client.run(run["run_id"]).details()))


@router.post("/{response_id}/cancel", response_class=Response, responses=OPENAI, summary="Cancel a response")
async def cancel(response_id: ResponseId, request: Request, caller: Operator) -> Response:
    """End its run, if it has not ended."""
    door = door_of(request)
    run = door.client.run((await _run(door, caller, response_id))["run_id"])
    await run.cancel(f"cancelled by {caller.name}")
    with suppress(TimeoutError):  # a run that is at work is asked to end
        await run.ended(5.0)
    return reply(response_of(await run.details()))


async def _run(door: Door, caller: Caller, response_id: str) -> dict[str, Any]:
    try:
        return await door.look(caller, response_id.removeprefix(MARK))
    except NotFound:
        raise NotFound(f"there is no response {response_id!r}") from None


def response_of(run: dict[str, Any], *, said: str | None = None, **more: Any) -> dict[str, Any]:
    """A run as a response."""
    status = _STATUS.get(run["status"], "in_progress")
    read, written = tokens(run)
    error = run.get("error") or {}
    made = _moment(run["created_at"])
    ended = run.get("finished_at")
    text = output_text(run.get("output")) if said is None and status == "completed" else said
    return {
        "id": f"{MARK}{run['run_id']}",
        "object": "response",
        "created_at": made,
        "completed_at": None if ended is None else _moment(ended),
        "status": status,
        "error": {"code": "server_error", "message": str(error.get("message"))} if status == "failed" else None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {"run_id": run["run_id"], "session_id": str(run.get("session_id") or run["run_id"])},
        "model": run["agent"],
        "output": [] if status != "completed" or text is None else [_message(run["run_id"], text)],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }
        if status == "completed"
        else None,
        **more,
    }


def _message(run_id: str, text: str | None) -> dict[str, Any]:
    content = [] if text is None else [_part(text)]
    status = "in_progress" if text is None else "completed"
    return {"type": "message", "id": f"msg_{run_id}", "role": "assistant", "status": status, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _moment(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


async def _pieces(door: Door, run_id: str, after: int, more: dict[str, Any]) -> sse.Pieces:
    """The events of a response with numbers over `after`.

    A number is made of the run's event alone, so that every gateway gives the same one. What went before is read
    again from the run's first event on, for the text that was said until then.
    """
    run = door.client.run(run_id)
    spoken = Spoken()
    for number, (kind, data) in enumerate(_begin(await run.details(steps=False), more)):
        if number > after:
            yield sse.event({"type": kind, "sequence_number": number, **data}, kind=kind)
    async with aclosing(run.events()) as events:
        async for event in events:
            first = (event["seq"] * _INDEXES + min(_index(event), _INDEXES - 2) + 1) * _PLACES
            said: Parts = iter(())
            if event["type"] in TERMINAL_EVENTS:
                said = _end(await run.details(), spoken, more)
            elif event["type"] == "llm.delta" and (text := spoken.delta(event["data"])):
                said = iter([("response.output_text.delta", {**_place(run_id), "delta": text, "logprobs": []})])
            for number, (kind, data) in enumerate(said, first):
                if number > after:
                    yield sse.event({"type": kind, "sequence_number": number, **data}, kind=kind)


def _index(event: RunEvent) -> int:
    index = event["data"].get("index")
    return index if isinstance(index, int) and event["type"] not in TERMINAL_EVENTS else 0


def _place(run_id: str) -> dict[str, Any]:
    return {"item_id": f"msg_{run_id}", "output_index": 0, "content_index": 0}


def _begin(run: dict[str, Any], more: dict[str, Any]) -> Parts:
    response = {**response_of(run, **more), "status": "in_progress", "output": [], "usage": None, "error": None}
    yield "response.created", {"response": response}
    yield "response.in_progress", {"response": response}
    yield "response.output_item.added", {"output_index": 0, "item": _message(run["run_id"], None)}
    yield "response.content_part.added", {**_place(run["run_id"]), "part": _part("")}


def _end(run: dict[str, Any], spoken: Spoken, more: dict[str, Any]) -> Parts:
    status = _STATUS.get(run["status"], "in_progress")
    if status != "completed":
        kind = "response.failed" if status in ("failed", "in_progress") else "response.incomplete"
        yield kind, {"response": response_of(run, **more)}
        return
    run_id = run["run_id"]
    if rest := spoken.rest(output_text(run.get("output"))):
        yield "response.output_text.delta", {**_place(run_id), "delta": rest, "logprobs": []}
    yield "response.output_text.done", {**_place(run_id), "text": spoken.said, "logprobs": []}
    yield "response.content_part.done", {**_place(run_id), "part": _part(spoken.said)}
    yield "response.output_item.done", {"output_index": 0, "item": _message(run_id, spoken.said)}
    yield "response.completed", {"response": response_of(run, said=spoken.said, **more)}
