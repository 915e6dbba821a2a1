"""Tools: functions that a model may call, described by their type hints and docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from perdure.agent.schema import Signature, read_signature
from perdure.engine import Retry

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tool:
    """A function that a model may call; calling the tool calls the function.

    `background` lets the model go on at once while the function runs as a durable child run; `wake` begins a turn
    when it is done. `requires_approval` makes each call wait for a person. `timeout` is seconds for one attempt, None
    leaves it to `tool_timeout_seconds`. With `retry` every `Exception` is tried again, without it only
    `RetryableError`. `idempotent=False` says that a call whose outcome was lost must not be repeated.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        background: bool = False,
        wake: bool = False,
        requires_approval: bool = False,
        timeout: float | None = None,
        retry: Retry | None = None,
        idempotent: bool = True,
        local_names: Mapping[str, Any] | None = None,
        signature: Signature | None = None,
    ) -> None:
        self.name: str = name or getattr(function, "__name__", "") or type(function).__name__
        if not _NAME.fullmatch(self.name):
            raise TypeError(f"tool name {self.name!r} must match [A-Za-z0-9_-]{{1,64}}; give one with @tool(name=…)")
        if wake and not background:
            raise TypeError(f"tool {self.name!r}: wake=True is for background=True, whose result comes later")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"tool {self.name!r}: timeout must be more than 0 seconds, not {timeout}")
        self.function = function
        self.signature: Signature = signature or read_signature(function, self.name, local_names or {})
        self.description = description or self.signature.description or self.name.replace("_", " ")
        injected = set(self.signature.injected.values())
        if injected == {"ctx", "step"}:
            raise TypeError(f"tool {self.name!r} takes a Context and a StepContext; the Context alone can do both")
        self.agent: Any = None  # the agent behind the tool, when it is one of this program
        self.handoff: str | None = None  # the agent that answers in this one's place
        self.background = background
        self.wake = wake
        self.requires_approval = requires_approval
        self.timeout = timeout
        self.retry = retry
        self.idempotent = idempotent
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  (asks for the method, not for callability)
        )
        if self.wants_context and not self.is_async:
            raise TypeError(f"tool {self.name!r} takes a Context, which only an async function can use")
        self.__name__ = self.name
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    @property
    def wants_context(self) -> bool:
        """Whether the function takes the workflow's `Context`: then its own calls are the journaled ones."""
        return "ctx" in self.signature.injected.values()

    def spec(self) -> dict[str, Any]:
        """The tool as the chat-completions protocol describes it."""
        function = {"name": self.name, "description": self.description, "parameters": self.signature.parameters}
        return {"type": "function", "function": function}

    def bind(self, arguments: str) -> dict[str, Any]:
        """The function's keyword arguments from the model's JSON text. Raises `ToolArgumentsError`."""
        return self.signature.bind(arguments)

    def injections(self, **values: Any) -> dict[str, Any]:
        """The injected arguments: those of `ctx=` and `step=` that the function asks for."""
        return {name: values[kind] for name, kind in self.signature.injected.items() if kind in values}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns: a tool is still the function that it was."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    background: bool = False,
    wake: bool = False,
    requires_approval: bool = False,
    timeout: float | None = None,
    retry: Retry | None = None,
    idempotent: bool = True,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a function a tool: `@tool` or `@tool(background=True, …)`; the options are those of `Tool`.

    Type hints become the schema, the docstring the description. A parameter annotated `Context` or `StepContext` is
    filled by the engine and unknown to the model. A plain function runs in a thread. Raises `TypeError`, naming the
    tool and the parameter, for a hint that has no JSON Schema.
    """
    local_names = sys._getframe(1).f_locals  # noqa: SLF001  (types that stand beside a tool inside a function)
    if function is not None:
        return Tool(function, local_names=local_names)
    return lambda fn: Tool(fn, local_names=local_names, **options)


def as_tools(given: Sequence[Any]) -> dict[str, Tool]:
    """Tools by name; a plain function becomes a tool, an object with `as_tool()` gives its own.

    Raises `TypeError` for anything else, and for two tools of one name.
    """
    tools: dict[str, Tool] = {}
    for one in given:
        if isinstance(one, Tool):
            made = one
        elif callable(getattr(one, "as_tool", None)):
            made = one.as_tool()
        elif callable(one):
            made = Tool(one)
        else:
            raise TypeError(f"a tool is a function or an agent, not {type(one).__name__}")
        if made.name in tools:
            raise TypeError(f"two tools are called {made.name!r}; rename one with @tool(name=…)")
        tools[made.name] = made
    return tools
