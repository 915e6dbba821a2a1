"""The offline model in the clothes of OpenAI's responses protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson


def from_responses(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as a chat completion. Raises `ValueError` that names the fault."""
    items = asked.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise ValueError("`input` must be a text or a list with at least one item")
    messages: list[dict[str, Any]] = []
    if asked.get("instructions"):
        messages.append({"role": "system", "content": asked["instructions"]})
    for at, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise ValueError(f"`input[{at}]` must be an object")  # noqa: TRY004  (one class for every malformed body)
        messages.append(_message(item))
    tools = [{"type": "function", "function": tool} for tool in asked.get("tools") or [] if isinstance(tool, Mapping)]
    choice = asked.get("tool_choice", "auto")
    if isinstance(choice, Mapping):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    form = (asked.get("text") or {}).get("format") or {}
    response_format = {"json_schema": {"schema": form["schema"]}} if form.get("schema") else None
    return {"messages": messages, "tools": tools, "tool_choice": choice, "response_format": response_format}


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    if item.get("type") == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    return {"role": item.get("role"), "content": item.get("content")}


def to_response(
    identity: str, model: str, notice: str, message: Mapping[str, Any], usage: Mapping[str, int]
) -> dict[str, Any]:
    """A chat completion's message as a response object."""
    output: list[dict[str, Any]] = []
    if message.get("content"):
        part = {"type": "output_text", "text": message["content"], "annotations": []}
        output.append(
            {"type": "message", "id": f"msg_{identity}", "role": "assistant", "status": "completed", "content": [part]}
        )
    output += [
        {
            "type": "function_call",
            "id": f"fc_{call['id']}",
            "call_id": call["id"],
            "status": "completed",
            **call["function"],
        }
        for call in message.get("tool_calls") or []
    ]
    return {
        "id": identity.replace("chatcmpl", "resp"),
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": model,
        "metadata": {"notice": notice},
        "output": output,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        },
    }


def response_events(response: Mapping[str, Any], pieces: Sequence[str]) -> Iterator[bytes]:
    """The events of a stream: the text piece by piece, then the whole response."""
    deltas: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "output": [], "status": "in_progress"}}
    ]
    deltas += [{"type": "response.output_text.delta", "output_index": 0, "delta": piece} for piece in pieces if piece]
    deltas.append({"type": "response.completed", "response": dict(response)})
    for number, event in enumerate(deltas):
        line = orjson.dumps({**event, "sequence_number": number})
        yield b"event: " + event["type"].encode() + b"\ndata: " + line + b"\n\n"
