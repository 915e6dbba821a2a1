"""Reads chat completions, whole or in pieces, without trusting a word of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.llm.types import ModelReply, Stop, ToolRequest

MAX_REPLY = 4_000_000
"""Characters of one answer, tool arguments included; more than that is a broken server."""


class NonsenseReplyError(ValueError):
    """The answer is not what the chat-completions protocol says; the text tells what is wrong."""


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, which must be an object. Raises `NonsenseReplyError` naming `what` it is."""
    if not isinstance(value, Mapping):
        raise NonsenseReplyError(f"{what} is {type(value).__name__}, not an object")
    return value


def _text(value: Any) -> str:
    """Message content: text, or a list of parts of which the text ones count."""
    if isinstance(value, list):
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def count(usage: Any, key: str) -> int:
    """A number of tokens, 0 when it is not sensibly said."""
    value = usage.get(key) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class Assembler:
    """Puts an answer together from the pieces of a stream (or from one whole answer)."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._tools: dict[int, dict[str, str]] = {}
        self._finish: str | None = None
        self._usage: Any = None
        self._model = ""
        self._size = 0

    def feed(self, chunk: Any) -> str:
        """Take one `chat.completion.chunk`; returns the answer text that it adds.

        Raises `NonsenseReplyError` when the chunk is none, or the answer grows beyond `MAX_REPLY`.
        """
        data = mapping(chunk, "a piece of the stream")
        if isinstance(data.get("model"), str):
            self._model = data["model"]
        if data.get("usage"):
            self._usage = data["usage"]
        choices = data.get("choices")
        if choices is None and not data.get("usage"):
            raise NonsenseReplyError("a piece of the stream has no choices")
        if not choices:
            return ""
        if not isinstance(choices, list):
            raise NonsenseReplyError("choices is not a list")
        choice = mapping(choices[0], "a choice")
        added = self._take(mapping(choice.get("delta") or {}, "delta"))
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"]
        return added

    def _take(self, message: Mapping[str, Any]) -> str:
        added = _text(message.get("content"))
        self._text.append(added)
        self._refusal.append(_text(message.get("refusal")))
        self._size += len(added)
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise NonsenseReplyError("tool_calls is not a list")
        for call in calls:
            self._take_call(mapping(call, "a tool call"))
        if self._size > MAX_REPLY:
            raise NonsenseReplyError(f"the answer is longer than {MAX_REPLY} characters")
        return added

    def _take_call(self, call: Mapping[str, Any]) -> None:
        said = call.get("id")
        index = call.get("index")
        if not isinstance(index, int):  # some servers leave it out: a new id begins a new call
            known = next((at for at, one in self._tools.items() if said and one["id"] == said), None)
            last = max(self._tools, default=-1)
            index = known if known is not None else last + 1 if said or last < 0 else last
        entry = self._tools.setdefault(index, {"id": "", "name": "", "arguments": ""})
        function = mapping(call.get("function") or {}, "a tool call's function")
        if isinstance(said, str) and said:
            entry["id"] = said
        if isinstance(function.get("name"), str) and function["name"]:
            entry["name"] = function["name"]
        if isinstance(function.get("arguments"), str):
            entry["arguments"] += function["arguments"]
            self._size += len(function["arguments"])

    def take_whole(self, completion: Any) -> None:
        """Take one whole `chat.completion`. Raises `NonsenseReplyError` when it is none."""
        data = mapping(completion, "the answer")
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices:
            raise NonsenseReplyError("the answer has no choices")
        choice = mapping(choices[0], "a choice")
        self._model = data["model"] if isinstance(data.get("model"), str) else ""
        self._usage = data.get("usage")
        self._take(mapping(choice.get("message"), "message"))
        finish = choice.get("finish_reason")
        self._finish = finish if isinstance(finish, str) else "tool_calls" if self._tools else "stop"

    def reply(self, *, provider: str, seconds: float) -> ModelReply:
        """The complete answer. Raises `NonsenseReplyError` for one that stopped half-way, or says nothing at all."""
        if self._finish is None:
            raise NonsenseReplyError("the stream ended before the answer did")
        text, refusal = "".join(self._text), "".join(self._refusal)
        calls = [
            ToolRequest(one["id"], one["name"], one["arguments"] or "{}") for _, one in sorted(self._tools.items())
        ]
        stop: Stop = "answer"
        if refusal:
            stop, text = "refusal", refusal
        elif self._finish == "content_filter":
            stop = "content_filter"
        elif self._finish == "length":
            stop = "length"
        elif calls:
            stop = "tools"
        if stop == "answer" and not text.strip():
            raise NonsenseReplyError("the answer is empty")
        return ModelReply(
            text=text,
            stop=stop,
            tool_calls=calls,
            model=self._model,
            provider=provider,
            input_tokens=count(self._usage, "prompt_tokens"),
            output_tokens=count(self._usage, "completion_tokens"),
            seconds=round(seconds, 4),
        )
