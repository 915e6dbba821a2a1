"""OpenAI's responses protocol: the same questions and answers as chat completions, in other clothes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.llm.parse import MAX_REPLY, NonsenseReplyError, count, mapping
from perdure.llm.types import Message, ModelReply, ModelRequest, ModelSettings, Stop, ToolRequest


def responses_body(settings: ModelSettings, request: ModelRequest, *, stream: bool) -> dict[str, Any]:
    """The JSON of one request; nothing is stored on the other side."""
    system = [str(one.get("content") or "") for one in request.messages if one.get("role") in {"system", "developer"}]
    items = [item for one in request.messages for item in _items(one)]
    out: dict[str, Any] = {"model": settings.model, "input": items, "store": False}
    if system:
        out["instructions"] = "\n".join(system)
    if request.tools:
        out["tools"] = [{"type": "function", "strict": False, **tool["function"]} for tool in request.tools]
        choice = request.tool_choice
        named = choice not in {"auto", "none", "required"}
        out["tool_choice"] = {"type": "function", "name": choice} if named else choice
        if not request.parallel_tools:
            out["parallel_tool_calls"] = False
    if settings.temperature is not None:
        out["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        out["max_output_tokens"] = settings.max_tokens
    if request.schema is not None:
        name, schema = request.schema
        out["text"] = {"format": {"type": "json_schema", "name": name, "schema": schema, "strict": False}}
    if stream:
        out["stream"] = True
    return out


def _items(message: Message) -> list[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if role in {"system", "developer"}:
        return []
    if role == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": content or ""}]
    items: list[dict[str, Any]] = [{"role": role, "content": content}] if content else []
    items += [
        {
            "type": "function_call",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in message.get("tool_calls") or []
    ]
    return items


class ResponsesAssembler:
    """Reads a response, whole or as a stream of events; only a finished one becomes an answer."""

    def __init__(self) -> None:
        self._response: Mapping[str, Any] | None = None
        self._size = 0

    def feed(self, event: Any) -> str:
        """Take one event; returns the answer text that it adds. Raises `NonsenseReplyError`."""
        data = mapping(event, "an event of the stream")
        kind = data.get("type")
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            self._response = mapping(data.get("response"), "the response")
        elif kind == "error":
            raise NonsenseReplyError(str(data.get("message") or "the stream says that it failed"))
        elif kind == "response.output_text.delta":
            text = data.get("delta")
            if isinstance(text, str):
                self._size += len(text)
                if self._size > MAX_REPLY:
                    raise NonsenseReplyError(f"the answer is longer than {MAX_REPLY} characters")
                return text
        return ""

    def take_whole(self, response: Any) -> None:
        """Take one whole response. Raises `NonsenseReplyError` when it is none."""
        self._response = mapping(response, "the answer")

    def reply(self, *, provider: str, seconds: float) -> ModelReply:
        """The complete answer. Raises `NonsenseReplyError` for one that stopped half-way, failed or is empty."""
        if self._response is None:
            raise NonsenseReplyError("the stream ended before the answer did")
        response = self._response
        output = response.get("output")
        if not isinstance(output, list):
            raise NonsenseReplyError("the response has no output")
        status = response.get("status", "completed")
        if status not in {"completed", "incomplete"}:
            error = response.get("error")
            said = error.get("message") if isinstance(error, Mapping) else None
            raise NonsenseReplyError(f"the response is {status}: {said or 'no reason given'}")
        text, refusal, calls = _read(output)
        stop: Stop = "tools" if calls else "answer"
        if refusal:
            stop, text = "refusal", refusal
        elif status == "incomplete":
            details = response.get("incomplete_details")
            reason = details.get("reason") if isinstance(details, Mapping) else None
            stop = "content_filter" if reason == "content_filter" else "length"
        if stop == "answer" and not text.strip():
            raise NonsenseReplyError("the answer is empty")
        model = response.get("model")
        return ModelReply(
            text=text,
            stop=stop,
            tool_calls=calls,
            model=model if isinstance(model, str) else "",
            provider=provider,
            input_tokens=count(response.get("usage"), "input_tokens"),
            output_tokens=count(response.get("usage"), "output_tokens"),
            seconds=round(seconds, 4),
        )


def _read(output: list[Any]) -> tuple[str, str, list[ToolRequest]]:
    text: list[str] = []
    refusal: list[str] = []
    calls: list[ToolRequest] = []
    for item in output:
        one = mapping(item, "an output item")
        if one.get("type") == "function_call":
            identity = str(one.get("call_id") or one.get("id") or "")
            calls.append(ToolRequest(identity, str(one.get("name") or ""), str(one.get("arguments") or "{}")))
        elif one.get("type") == "message":
            for part in one.get("content") or []:
                found = mapping(part, "a part of the message")
                (refusal if found.get("type") == "refusal" else text).append(
                    str(found.get("refusal") or found.get("text") or "")
                )
    return "".join(text), "".join(refusal), calls
