"""A model that says what the test wrote down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson

from perdure.errors import PermanentError
from perdure.llm.types import ModelReply, ModelRequest, OnDelta, ToolRequest

INJECTED = "_end"
"""How the id of a call that the platform itself put into the conversation ends (a background tool's result)."""


@dataclass(frozen=True, slots=True)
class Call:
    """The model calls `tool`; `arguments` is an object, or text that is sent as it is, broken or not."""

    tool: str
    arguments: dict[str, Any] | str = field(default_factory=dict)


Line: TypeAlias = "str | Call | Sequence[Call] | ModelReply"


class ScriptedModel:
    """The nth answer of a conversation is the nth line of the script, in every conversation.

    A line is a text, a `Call`, several calls, a whole `ModelReply`, or a function of the request that returns one.
    The line is found by counting the model's answers in the request, so a retry, a replay or another process gets
    the same one. `requests` holds what was asked. A script that is over is a `PermanentError`.
    """

    def __init__(self, *lines: Line | Callable[[ModelRequest], Line]) -> None:
        self.lines = lines
        self.requests: list[ModelRequest] = []

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelReply:
        """The line for this point of the conversation."""
        self.requests.append(request)
        said = sum(1 for message in request.messages if message.get("role") == "assistant" and not _injected(message))
        if said >= len(self.lines):
            raise PermanentError(f"the script has {len(self.lines)} line(s), and the conversation asks for one more")
        line = self.lines[said]
        if callable(line):
            line = line(request)
        reply = _reply(line, said)
        if on_delta is not None and reply.text:
            on_delta(0, reply.text)
        return reply


def _injected(message: dict[str, Any]) -> bool:
    calls = message.get("tool_calls") or []
    return bool(calls) and all(str(call.get("id", "")).endswith(INJECTED) for call in calls)


def _reply(line: Line, at: int) -> ModelReply:
    if isinstance(line, ModelReply):
        return line
    if isinstance(line, str):
        return ModelReply(line, "answer", model="scripted", provider="scripted", input_tokens=1, output_tokens=1)
    calls = [line] if isinstance(line, Call) else list(line)
    requests = [
        ToolRequest(
            f"call_{at}_{number}",
            call.tool,
            call.arguments if isinstance(call.arguments, str) else orjson.dumps(call.arguments).decode(),
        )
        for number, call in enumerate(calls)
    ]
    return ModelReply("", "tools", requests, model="scripted", provider="scripted", input_tokens=1, output_tokens=1)
