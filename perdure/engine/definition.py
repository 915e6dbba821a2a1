"""What the engine knows of a workflow and of a step function: how to call it and how its result travels."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from perdure.engine.codec import ANY_RESULT, ResultType

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

WORKFLOW_MARK = "__perdure_workflow__"


class StepInjected:
    """Base of the values that the engine passes to a step function by its annotation."""


@dataclass(frozen=True, slots=True)
class WorkflowMark:
    """What `@workflow` leaves on a function."""

    name: str | None
    version: str | None


@overload
def workflow(function: F, /) -> F: ...
@overload
def workflow(*, name: str | None = None, version: str | None = None) -> Callable[[F], F]: ...
def workflow(
    function: F | None = None, /, *, name: str | None = None, version: str | None = None
) -> F | Callable[[F], F]:
    """Mark `async def method(self, ctx, task)` as a workflow of its agent.

    `name` is what callers start (default: the function's name; `run` is the one started when none is named).
    `version` is the author's word for the form of the code: a run takes one at its first claim, keeps it, and is only
    taken up by code that offers it. Several methods may carry one `name` with different versions; new runs take the
    one that is defined last. Raises `TypeError` when the function is not async.
    """

    def mark(fn: Any) -> Any:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@workflow goes on an async function; {fn.__qualname__} is not one")
        setattr(fn, WORKFLOW_MARK, WorkflowMark(name or fn.__name__, version))
        return fn

    return mark if function is None else mark(function)


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """One workflow of an agent, ready to run: `call(ctx, task)`."""

    name: str
    version: str | None
    call: Callable[[Any, Any], Awaitable[Any]]
    result: ResultType
    task: ResultType
    source_hash: str
    older: tuple[WorkflowDefinition, ...] = ()  # the earlier versions that runs in flight may still have


def define_workflow(
    call: Callable[..., Awaitable[Any]], *, name: str, version: str | None = None
) -> WorkflowDefinition:
    """Describe `call(ctx, task)`; its annotations say how the task and the output travel.

    Raises `TypeError` when it does not take exactly a context and a task.
    """
    signature = inspect.signature(call)
    if len([p for p in signature.parameters.values() if p.default is p.empty]) > 2 or len(signature.parameters) < 1:
        raise TypeError(f"workflow {name!r} must take (ctx, task); it takes {signature}")
    wants_task = len(signature.parameters) > 1
    hints = _hints(call)
    task_name = list(signature.parameters)[1] if wants_task else None
    task = ResultType(hints[task_name]) if task_name in hints else ANY_RESULT
    result = ResultType(hints["return"]) if "return" in hints else ANY_RESULT
    return WorkflowDefinition(
        name, version, call if wants_task else lambda ctx, _task: call(ctx), result, task, _source_hash(call)
    )


def _source_hash(call: Callable[..., Any]) -> str:
    try:
        source = inspect.getsource(call)
    except (OSError, TypeError):
        return "unknown"
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class StepFunction:
    """How a step function is called: whether it is async, which parameter gets the `StepContext`, how it returns."""

    is_async: bool
    injected: tuple[tuple[str, type], ...]
    result: ResultType


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    while isinstance(target, functools.partial):
        target = target.func
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {name: _hint(target, hint) for name, hint in getattr(target, "__annotations__", {}).items()}


def _hint(target: Callable[..., Any], hint: Any) -> Any:
    """One annotation, where another has a name that only exists for type checkers; such a one stays text."""
    try:
        alone = types.SimpleNamespace(__annotations__={"hint": hint})
        return typing.get_type_hints(alone, globalns=getattr(target, "__globals__", {}))["hint"]
    except (NameError, TypeError, AttributeError):
        return hint


def _describe(function: Callable[..., Any]) -> StepFunction:
    function = getattr(function, "durable_function", function)  # one that `@step` marks, given to `ctx.step`
    hints = _hints(function)
    injected = tuple(
        (name, hint)
        for name, hint in hints.items()
        if name != "return" and isinstance(hint, type) and issubclass(hint, StepInjected)
    )
    annotation = hints.get("return")
    try:
        result = ANY_RESULT if annotation is None or isinstance(annotation, str) else ResultType(annotation)
    except Exception as error:
        raise TypeError(f"{function!r} returns {annotation!r}, which has no JSON form: {error}") from error
    target = function.func if isinstance(function, functools.partial) else function
    is_async = inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004 -- asks for the method, not for callability
    return StepFunction(is_async, injected, result)


_described: dict[Any, tuple[Any, StepFunction]] = {}


def step_function(function: Callable[..., Any]) -> StepFunction:
    """Describe a step function, once for each piece of code. Raises `TypeError` for a result with no JSON form."""
    key = getattr(function, "__code__", None) or getattr(getattr(function, "__func__", None), "__code__", None)
    if key is None:
        return _describe(function)
    # Functions that one factory makes share their code, not always their annotations.
    hints = getattr(function, "__annotations__", None)
    known = _described.get(key)
    if known is None or known[0] != hints:
        if len(_described) > 10_000:
            _described.clear()  # code made at run time must not grow memory without end
        known = _described[key] = (hints, _describe(function))
    return known[1]
