"""What goes to a model and what comes back, independent of any provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

Message: TypeAlias = dict[str, Any]
"""One message in the chat-completions form: `role`, `content`, perhaps `tool_calls` or `tool_call_id`."""

Stop: TypeAlias = Literal["answer", "tools", "length", "refusal", "content_filter"]
"""Why the model stopped: it answered, it asks for tools, it ran out of tokens, it declined, it was filtered."""

OnDelta: TypeAlias = Callable[[int, str], None]
"""Called with (index, text) for each piece of an answer while it comes in."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Where a model is and how it is asked: one call's view of the configuration.

    `timeout` is the longest silence (seconds) that is waited out, for a stream between two pieces. `headers` are
    extra HTTP headers of this endpoint, `api` is the protocol that it speaks.
    """

    model: str
    base_url: str
    api_key: str = field(repr=False)
    provider: str = "openai"
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 120.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    api: Literal["chat", "responses"] = "chat"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One question: the conversation, the tools on offer, and the form of the answer.

    `tools` are chat-completions tool objects; `tool_choice` is `auto`, `none`, `required` or a tool's name;
    `schema` is `(name, JSON Schema)` when the answer must be such a JSON document.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: str = "auto"
    parallel_tools: bool = True
    schema: tuple[str, dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool that the model wants called; `arguments` is its text, which may be broken JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A complete answer; half a stream never becomes one. `seconds` is how long the call took."""

    text: str
    stop: Stop
    tool_calls: list[ToolRequest] = field(default_factory=list)
    model: str = ""
    provider: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0


@runtime_checkable
class Model(Protocol):
    """What a `DurableAgent` asks; `ScriptedModel` of `perdure.testing` is one, `ModelClient` serves the rest."""

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelReply:
        """Answer `request`; raises `PermanentError` or `RetryableError`."""
        ...
