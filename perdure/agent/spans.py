"""Spans of models and tools, where traces are sent; nothing otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from perdure.agent.tool_calls import ToolResult
    from perdure.llm.types import ModelReply, ModelSettings
    from perdure.observe.otel import Traces


def _nobody(_said: object) -> None:
    """Without traces nobody is told."""


@contextmanager
def model_span(
    traces: Traces | None, model: str, provider: str, endpoint: ModelSettings | None = None
) -> Iterator[Callable[[ModelReply], None]]:
    """Within: a model is asked. The function given takes its reply."""
    if traces is None:
        yield _nobody
        return
    asked = {} if endpoint is None else {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
    with traces.asking(model, provider, **asked) as span:
        if endpoint is not None:
            span.set_attribute("server.address", urlsplit(endpoint.base_url).hostname or "")
        yield lambda reply: traces.answered(span, reply)


@contextmanager
def tool_span(traces: Traces | None, name: str, call_id: str) -> Iterator[Callable[[ToolResult], None]]:
    """Within: a tool is called. The function given takes its result."""
    if traces is None:
        yield _nobody
        return
    with traces.tool(name, call_id) as span:
        yield lambda result: traces.fails(span, "tool") if result.error else None
