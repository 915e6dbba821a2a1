"""Parallel work beside `gather`: the first outcome wins (`race`), and many items under a bound (`map`).

Neither is a journal row. Outcomes are handed over one at a time in journal order, so which part is first, and which
item begins when another one ends, is the same on every replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from perdure.engine.calls import Call, Gather
from perdure.errors import WorkflowMisuse

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution


class Race(Gather):
    """The outcome of the part that has one first. The others are cancelled, and have unwound when it is handed over.

    `choose(index, value)` makes the result of the winner.
    """

    kind = "race"
    __slots__ = ("_choose", "_winner")

    def __init__(
        self,
        execution: Execution,
        branch: Branch,
        parts: tuple[Any, ...],
        choose: Callable[[int, Any], Any] = lambda _index, value: value,
    ) -> None:
        if not parts:
            raise ValueError("ctx.race takes at least one call or coroutine; nothing would ever win")
        super().__init__(execution, branch, parts)
        self._choose = choose
        self._winner: tuple[int, Any, BaseException | None] | None = None

    def begin(self) -> None:
        """Begin the parts in the order given, unless one has won before."""
        self.begun = True
        for index, part in enumerate(self._parts):
            if self._winner is None:
                self._begin_part(index, part)
            else:
                _discard(part)

    def _part_done(self, index: int, value: Any, error: BaseException | None) -> None:
        self._left -= 1
        if self.abandoned or self.done:
            return
        if self._winner is None:
            self._winner = index, value, error
            self._cancel_parts()
        if not self._branches:
            self._decide(*self._winner)

    def _decide(self, index: int, value: Any, error: BaseException | None) -> None:
        if error is None:
            try:
                value = self._choose(index, value)
            except TimeoutError as over:
                error = over
        self.resolve(value, error)


class Map(Gather):
    """`function` of each item, each in a branch of its own, at most `concurrency` at a time; results in item order."""

    kind = "map"
    __slots__ = ("_bound", "_function", "_items", "_next")

    def __init__(
        self,
        execution: Execution,
        branch: Branch,
        function: Callable[[Any], Awaitable[Any]],
        items: Sequence[Any],
        concurrency: int | None,
    ) -> None:
        if concurrency is not None and not isinstance(concurrency, int):
            raise TypeError(f"concurrency of ctx.map must be a whole number, not {type(concurrency).__name__}")
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency of ctx.map is {concurrency}; it is at least 1, or None for no bound")
        super().__init__(execution, branch, ())
        self._function = function
        self._items = items
        self._results = [None] * len(items)
        self._left = len(items)
        self._bound = len(items) if concurrency is None else concurrency
        self._next = 0

    def begin(self) -> None:
        """Begin as many as may run at once."""
        self.begun = True
        if not self._items:
            self.resolve([])
        for _ in range(min(self._bound, len(self._items))):
            self._begin_next()

    def _begin_next(self) -> None:
        index = self._next
        self._next += 1
        self._begin_part(index, self._one(self._items[index]))

    async def _one(self, item: Any) -> Any:
        found = self._function(item)
        if not isinstance(found, Call) and not asyncio.iscoroutine(found):
            raise WorkflowMisuse(
                "ctx.map takes a function that returns a ctx call or a coroutine, or a function marked with @step; "
                f"this one returned {type(found).__name__}"
            )
        return await found

    def _part_done(self, index: int, value: Any, error: BaseException | None) -> None:
        super()._part_done(index, value, error)
        if self._failure is None and not self.abandoned and self._next < len(self._items):
            self._begin_next()


def _discard(part: Any) -> None:
    """A part that never begins: its coroutines would complain that nobody awaited them."""
    if isinstance(part, Gather):
        for each in part.parts:
            _discard(each)
    elif not isinstance(part, Call):
        part.close()
