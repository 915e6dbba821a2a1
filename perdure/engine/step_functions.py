"""`@step`: a function that is a journaled step wherever a workflow calls it, and an ordinary function elsewhere."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, overload

from perdure.engine.branch import current_line
from perdure.engine.codec import identity
from perdure.engine.retry import Retry
from perdure.engine.steps import StepCall
from perdure.engine.waits import one_line, seconds_of

P = ParamSpec("P")
T = TypeVar("T")


class DurableStep:
    """What `@step` makes of a function; on an instance it is bound to it, as a method is."""

    def __init__(
        self, function: Callable[..., Any], name: str | None, retry: Retry | None, timeout: float | None
    ) -> None:
        self.durable_function = function
        self.name = one_line(name or function.__name__, what="a step's name")
        self.retry = retry
        self.timeout = timeout
        self._attribute = ""
        functools.update_wrapper(self, function)

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, instance: Any, owner: type) -> DurableStep:
        if instance is None:
            return self
        bound = DurableStep(types.MethodType(self.durable_function, instance), self.name, self.retry, self.timeout)
        with contextlib.suppress(AttributeError):  # an instance without a dict makes one each time
            instance.__dict__[self._attribute] = bound
        return bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A step of the workflow that calls; elsewhere the function itself."""
        line = current_line()
        if line is None:
            return self.durable_function(*args, **kwargs)
        digest = identity(self.name, args, kwargs)
        return StepCall(
            line.execution, line, self.name, digest, self.durable_function, args, kwargs, self.retry, self.timeout
        )


@overload
def step(function: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def step(
    *, name: str | None = ..., retry: Retry | None = ..., timeout: float | timedelta | None = ...
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    timeout: float | timedelta | None = None,
) -> Any:
    """Mark an async function or method as a step: `await self.read(file)` in a workflow is journaled as one.

    It is what `ctx.step(name, self.read, file, retry=…, timeout=…)` does, with the options said once, at the function;
    the call may also be given to `ctx.gather`, `ctx.race` and `ctx.map`. Called within a step, or outside of a run, it
    simply runs. `name` is the step's (default: the function's), `timeout` bounds one attempt, in seconds. Raises
    `TypeError` when the function is not async: give a plain one to `ctx.step`, which runs it in a thread.
    """

    def mark(fn: Callable[..., Any]) -> Any:
        if not inspect.iscoroutinefunction(fn):
            said = getattr(fn, "__qualname__", repr(fn))
            raise TypeError(f"@step goes on an async function; {said} is not one. ctx.step runs plain ones in a thread")
        bound = None if timeout is None else seconds_of(timeout, what=f"timeout of @step {fn.__name__!r}")
        return DurableStep(fn, name, retry, bound)

    return mark if function is None else mark(function)
