"""`/v1/models` and `/v1/chat/completions`: agents as models, for any OpenAI client."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from perdure.agent.registry import live_agents
from perdure.edge import sse
from perdure.edge.callers import Caller
from perdure.edge.door import Door, door_of
from perdure.edge.openai_common import Spoken, agent_of, finished, output_text, read_messages, start, tokens
from perdure.edge.problems import openai_error
from perdure.edge.replies import OPENAI, OPENAI_ERRORS, OPENAI_STREAM, IdempotencyKey, reply
from perdure.edge.roles import Operator, Viewer
from perdure.errors import InvalidRequest, RunFailed, Unavailable
from perdure.messages import Message
from perdure.subjects import RUN_ID

router = APIRouter(prefix="/v1", tags=["openai"], responses=OPENAI_ERRORS)

STEPS: Final = frozenset({"step.completed", "step.failed", "tool.started", "tool.completed", "approval.requested"})


class ChatRequest(Message):
    """What an OpenAI client sends. What shapes a model's answer is the agent's configuration, and ignored here."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_extra={
            "example": {"model": "assistant", "messages": [{"role": "user", "content": "Who are you?"}]}
        },
    )

    model: str = Field(max_length=100, description="An agent's name.")
    messages: list[Any] = Field(min_length=1, max_length=10_000)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: int | None = Field(None, ge=1, le=1, description="One answer.")
    tools: list[Any] | None = Field(None, max_length=0, description="Agents call tools of their own.")
    metadata: dict[str, Any] | None = Field(None, description="`session_id`: a conversation that is kept here.")


@router.get("/models", response_class=Response, responses=OPENAI, summary="Agents as models")
async def models(request: Request, caller: Viewer) -> Response:
    """The agents that are up."""
    door = door_of(request)
    found = [
        {"id": each["agent"], "object": "model", "created": 0, "owned_by": "perdure"}
        for each in await live_agents(door.pool)
        if caller.uses(each["agent"]) and door.only in (None, each["agent"])
    ]
    return reply({"object": "list", "data": found})


@router.get("/models/{model}", response_class=Response, responses=OPENAI, summary="One agent as a model")
async def model(model: str, request: Request, caller: Viewer) -> Response:
    """An agent that is up."""
    agent = await agent_of(door_of(request), caller, model)
    return reply({"id": agent, "object": "model", "created": 0, "owned_by": "perdure"})


@router.post("/chat/completions", response_class=Response, responses=OPENAI_STREAM, summary="Chat with an agent")
async def completions(body: ChatRequest, request: Request, caller: Operator, key: IdempotencyKey = None) -> Response:
    """A run of an agent for the newest message of the user, and its output as the answer.

    With `metadata.session_id` the conversation is kept here and the other messages are left out; without it they are
    told to the agent. The agent's own steps are beside the answer, in `perdure`.
    """
    door = door_of(request)
    agent = await agent_of(door, caller, body.model)
    prompt, before = read_messages(body.messages, "messages")
    session = session_in(caller, body.metadata)
    run, _ = await start(door, caller, agent, prompt, before, session=session, key=key)
    head = {"id": f"chatcmpl-{run.run_id}", "created": int(time.time()), "model": body.model}
    if body.stream:
        usage = bool((body.stream_options or {}).get("include_usage"))
        pieces = _pieces(door, run.run_id, head, request.scope["state"]["request_id"], usage=usage)
        return sse.EventStream(door, pieces, still=lambda: door.gate.still(caller))
    try:
        ended = await finished(run)
    except TimeoutError:
        raise Unavailable(f"run {run.run_id} has no answer yet; it goes on", run_id=run.run_id) from None
    message = {"role": "assistant", "content": output_text(ended.get("output")), "refusal": None}
    steps = [{"name": step["name"], "kind": step["kind"], "status": step["status"]} for step in ended["steps"]]
    return reply(
        {
            **head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": _usage(ended),
            "perdure": {"run_id": run.run_id, "steps": steps},
        }
    )


def session_in(caller: Caller, metadata: dict[str, Any] | None) -> str | None:
    """The conversation that `metadata.session_id` names. Raises `InvalidRequest`."""
    said = (metadata or {}).get("session_id")
    if said is None:
        return None
    if not isinstance(said, str) or not RUN_ID.fullmatch(said):
        raise InvalidRequest("field 'metadata.session_id': it must match [A-Za-z0-9_-]{1,128}")
    return caller.own(said, field="session_id")


async def _pieces(door: Door, run_id: str, head: dict[str, Any], request_id: str, *, usage: bool) -> sse.Pieces:
    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return sse.event({**head, "object": "chat.completion.chunk", "choices": choices, **more})

    yield chunk({"role": "assistant", "content": ""})
    spoken = Spoken()
    async with aclosing(door.client.run(run_id).events()) as events:
        async for event in events:
            if event["type"] == "llm.delta":
                if text := spoken.delta(event["data"]):
                    yield chunk({"content": text})
            elif event["type"] in STEPS and event["data"].get("name") != "model":
                shown = {name: event["data"].get(name) for name in ("name", "tool", "call_id", "kind")}
                step = {"seq": event["seq"], "type": event["type"]}
                yield chunk({}, perdure={"run_id": run_id, **step, **{k: v for k, v in shown.items() if v}})
    try:
        ended = await finished(door.client.run(run_id), 30.0)
    except (RunFailed, TimeoutError) as error:
        said = error if isinstance(error, RunFailed) else Unavailable(f"run {run_id} has no answer yet; it goes on")
        yield sse.event(openai_error(said, request_id))
        return
    if rest := spoken.rest(output_text(ended.get("output"))):
        yield chunk({"content": rest})
    yield chunk({}, "stop")
    if usage:
        yield sse.event({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(ended)})
    yield sse.event(b"[DONE]")


def _usage(run: dict[str, Any]) -> dict[str, int]:
    read, written = tokens(run)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
