"""`ctx`, the part that does several things at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from perdure.engine.calls import Gather
from perdure.engine.codec import identity
from perdure.engine.parallel import Map, Race
from perdure.engine.waits import SleepCall, seconds_of

if TYPE_CHECKING:
    from perdure.engine.execution import Execution

T = TypeVar("T")


class ParallelContext:
    """What `Context` offers for parallel work. Parts are `ctx` calls, or coroutines that use `ctx`; they nest."""

    __slots__ = ()

    _execution: Execution

    def gather(self, *aws: Awaitable[Any]) -> Awaitable[list[Any]]:
        """Wait for all of `aws` at once: `ctx` calls, or coroutines that use `ctx`. Results in the order given.

        The first failure cancels the others and is raised. Each coroutine is a branch with positions of its own.
        """
        execution = self._execution
        return Gather(execution, execution.branch(), aws)

    def map(
        self, fn: Callable[[Any], Awaitable[T]], items: Iterable[Any], *, concurrency: int | None = None
    ) -> Awaitable[list[T]]:
        """`fn(item)` for every item, at most `concurrency` at a time (None: all at once). Results in item order.

        `fn` returns a `ctx` call or is a coroutine function that uses `ctx`; each item is a branch of its own. The
        first failure cancels the others, no further item begins, and it is raised.
        """
        execution = self._execution
        return Map(execution, execution.branch(), fn, list(items), concurrency)

    def race(self, *aws: Awaitable[Any]) -> Awaitable[Any]:
        """The first outcome among `aws`, a result or an error; the others are cancelled.

        Which one was first is what the journal says, so it is the same on replay. A signal that comes for a wait that
        has lost is kept for the next wait; a child run that has lost is asked to end.
        """
        execution = self._execution
        return Race(execution, execution.branch(), aws)

    def wait_any(self, *aws: Awaitable[Any]) -> Awaitable[tuple[int, Any]]:
        """`race`, and which one it was: `index, value = await ctx.wait_any(first, second)`."""
        execution = self._execution
        return Race(execution, execution.branch(), aws, lambda index, value: (index, value))  # type: ignore[return-value]

    def select(self, **aws: Awaitable[Any]) -> Awaitable[tuple[str, Any]]:
        """`race` by names: `name, value = await ctx.select(paid=ctx.wait_signal("paid"), late=ctx.sleep(3600))`."""
        execution = self._execution
        names = list(aws)
        parts = tuple(aws.values())
        return Race(execution, execution.branch(), parts, lambda index, value: (names[index], value))  # type: ignore[return-value]

    def wait_for(self, aw: Awaitable[T], timeout: float | timedelta) -> Awaitable[T]:
        """The outcome of `aw`, or `TimeoutError` and its cancellation after `timeout`: durable, over restarts too."""
        execution = self._execution
        branch = execution.branch()
        wait = seconds_of(timeout, what="timeout of ctx.wait_for")
        timer = SleepCall(execution, branch, "timeout", identity("timeout", (wait,), {}), wait)

        def choose(index: int, value: Any) -> Any:
            if index == 1:
                raise TimeoutError(f"it was not there within {wait:g} s")
            return value

        return Race(execution, branch, (aw, timer), choose)  # type: ignore[return-value]
