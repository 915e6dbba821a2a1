"""What a workflow waits for: each call has a path, becomes journal rows, and is resolved by them.

A call is lazy like a coroutine: it begins when it is awaited or given to `ctx.gather`. Live and on replay it is driven
by the same rows: `on_row` reacts to a row that was handed over, `go_live` does what no row has done yet.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Generator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from perdure.engine.branch import current
from perdure.engine.points import reach
from perdure.engine.rows import JournalRow, Snapshot, Start
from perdure.errors import WorkflowMisuse

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution

T = TypeVar("T")


class Call(Generic[T]):
    """One thing that a workflow waits for."""

    kind: ClassVar[str] = ""
    can_inline: ClassVar[bool] = False
    __slots__ = (
        "_error",
        "_future",
        "_value",
        "abandoned",
        "awaited",
        "begun",
        "branch",
        "child",
        "done",
        "due_at",
        "execution",
        "hash",
        "index",
        "inlined",
        "name",
        "parent",
        "path",
        "signal",
        "task",
    )

    def __init__(self, execution: Execution, branch: Branch, path: str, name: str, digest: str) -> None:
        self.execution = execution
        self.branch = branch
        self.path = path
        self.name = name
        self.hash = digest
        self.begun = self.awaited = self.done = self.abandoned = self.inlined = False
        self.index = 0  # the place in its gather
        self.due_at: datetime | None = None  # when a timer of this call fires
        self.signal: str | None = None  # the signal name it waits for
        self.child: str | None = None  # the child run it waits for
        self.parent: Any = None  # the gather that this call belongs to
        self.task: asyncio.Task[Any] | None = None
        self._future: asyncio.Future[None] | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    def __await__(self) -> Generator[Any, None, T]:
        execution = self.execution
        if execution.branch() is not self.branch:
            raise WorkflowMisuse(f"{self.kind} {self.name!r} was made in one branch and awaited in another")
        if self.awaited:
            raise WorkflowMisuse(f"{self.kind} {self.name!r} is awaited twice; keep its result instead")
        self.awaited = True
        if self.done:
            execution.active += 1  # it began eagerly and is through: nobody counted this branch out
        if not self.begun:
            self.begin()
        execution.blocked(self.branch, self)
        try:
            if self.inlined and not self.done:
                yield from self.inline()
            if not self.done:
                self._future = execution.host.loop.create_future()
                yield from self._future
        except BaseException:
            # A run that only leaves memory gives nothing up: its children and waits are the next holder's.
            if not self.done and not self.abandoned and not execution.closed:
                execution.active += 1
                self.abandon()
            raise
        finally:
            self.branch.waiting_on = None
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this call
        return self._value  # type: ignore[no-any-return]

    def begin(self) -> None:
        """Take part in the replay, or go live."""
        self.begun = True
        self.execution.register(self)
        if self.execution.replaying:
            return
        if self.parent is None and self.can_inline:
            self.inlined = True
            self.execution.busy += 1
        else:
            self.go_live()

    def inline(self) -> Generator[Any, None, None]:
        """Do the live work in the awaiting branch's own task: it saves a task a step."""
        raise AssertionError(self.kind)

    def go_live(self) -> None:
        """Do what no journal row has done yet."""
        raise AssertionError(self.kind)

    def on_row(self, row: JournalRow) -> None:  # noqa: ARG002 -- what the kinds react to
        """React to a row of this call's path."""
        raise AssertionError(self.kind)

    def passed_over(self, row: JournalRow) -> None:
        """A row came for a call that nobody waits for any more."""

    def resolve(self, value: Any = None, error: BaseException | None = None) -> None:
        """Hand the outcome to whoever waits."""
        if self.done:
            return
        self.done = True
        self._value, self._error = value, error
        self.execution.pending.pop(self.path, None)
        self.stop_timer()
        if self.parent is not None:
            parent, self.parent = self.parent, None
            parent.child_resolved(self)
        elif self.awaited:
            self.execution.active += 1
            if self._future is not None and not self._future.done():
                self._future.set_result(None)

    def unwind(self, branch: Branch) -> bool:  # noqa: ARG002 -- for calls that have parts
        """Whether `branch`, which waits here and is to be cancelled, must wait until parts of this have unwound."""
        return False

    def abandon(self) -> None:
        """Nobody waits any more: stop what is under way; later rows of this path are passed over."""
        self.abandoned = True
        self.execution.pending.pop(self.path, None)
        self.stop_timer()

    def stop_timer(self) -> None:
        """End the call's own task."""
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        self.task = None

    def outcome(self) -> tuple[Any, BaseException | None]:
        """Value and error of a resolved call."""
        return self._value, self._error

    # -- helpers for the kinds ----------------------------------------------------------------------------------------

    def row(
        self,
        outcome: str,
        result: str | None = None,
        *,
        error: str | None = None,
        due_at: datetime | None = None,
        attempt: int = 1,
        kind: str | None = None,
        signal_seq: int | None = None,
        started_at: datetime | None = None,
    ) -> JournalRow:
        """A row of this call, with the next seq."""
        execution = self.execution
        now = execution.host.clock.now()
        return JournalRow(  # by position, as each step makes one
            execution.next_seq(),
            self.path,
            kind or self.kind,
            self.name,
            self.hash,
            outcome,
            result,
            error,
            attempt,
            due_at,
            signal_seq,
            execution.config.revision,
            started_at or now,
            now,
        )

    def write(self, row: JournalRow, start: Start | None = None, snapshot: Snapshot | None = None) -> None:
        """Send a row of this call to the journal."""
        self.execution.write(row, start, snapshot)

    def set_timer(self, due_at: datetime) -> None:
        """Call `on_due` at `due_at`, if the run is still in memory then; otherwise the scheduler wakes it."""
        self.due_at = due_at
        self.stop_timer()
        self.task = self.execution.spawn(self._timer(due_at))

    async def _timer(self, due_at: datetime) -> None:
        await self.execution.host.clock.sleep_until(due_at)
        self.task = None
        self.due_at = None
        # Of a run that is on its way out, the scheduler takes care: what began here could not be journaled any more.
        out = self.execution.pausing or self.execution.leaving
        if not self.done and not self.abandoned and not out:
            reach("timer.due", self.execution.run_id, self.name)
            self.on_due()

    def on_due(self) -> None:
        """The timer has fired."""
        raise AssertionError(self.kind)

    def after(self, seconds: float) -> datetime:
        """The moment `seconds` from now."""
        return self.execution.host.clock.now() + timedelta(seconds=seconds)


class CancelCall(Call[None]):
    """The run is to end: journaled, so that the cancellation replays where it struck."""

    kind = "cancel"
    __slots__ = ()

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution, execution.root, "!cancel", "cancel", "")

    def go_live(self) -> None:
        """Journal it."""
        reach("cancel.heard", self.execution.run_id)
        self.write(self.row("ok"))

    def on_row(self, row: JournalRow) -> None:  # noqa: ARG002 -- the row says no more than that it is there
        """Raise `CancelledError` in the workflow's body; code that is being undone hears no more of it."""
        self.done = True
        self.execution.pending.pop(self.path, None)
        if not self.execution.undoing:
            self.execution.root.cancel()


class Gather(Call[list[Any]]):
    """Several calls and branches at once; never a row itself, for the rows of its parts say it all."""

    kind = "gather"
    __slots__ = ("_branches", "_failure", "_left", "_parts", "_results", "_stopping", "_then")

    def __init__(self, execution: Execution, branch: Branch, parts: tuple[Any, ...]) -> None:
        super().__init__(execution, branch, branch.take(), "gather", "")
        self._parts = parts
        self._results: list[Any] = [None] * len(parts)
        self._left = len(parts)
        self._failure: BaseException | None = None
        self._branches: dict[int, Branch] = {}
        self._stopping = False
        self._then: Branch | None = None  # who is cancelled once the parts have unwound
        for part in parts:
            if isinstance(part, Call):
                if part.begun or part.branch is not branch:
                    raise WorkflowMisuse(f"ctx.{self.kind} takes fresh ctx calls of its own branch")
            elif not asyncio.iscoroutine(part):
                raise TypeError(f"ctx.{self.kind} takes ctx calls and coroutines, not {type(part).__name__}")

    @property
    def parts(self) -> tuple[Any, ...]:
        """What it waits for."""
        return self._parts

    def begin(self) -> None:
        """Begin every part, in the order given."""
        self.begun = True
        if not self._parts:
            self.resolve([])
        for index, part in enumerate(self._parts):
            self._begin_part(index, part)

    def _begin_part(self, index: int, part: Any) -> None:
        from perdure.engine.branch import Branch as NewBranch  # noqa: PLC0415 -- the execution is made of calls

        if isinstance(part, Call):
            part.parent, part.index = self, index
            part.begin()
            return
        line = NewBranch(self.execution, f"{self.path}.{index + 1}.")
        self._branches[index] = line
        self.execution.active += 1
        line.task = self.execution.spawn(self._run(line, part))
        line.task.add_done_callback(functools.partial(self._branch_done, index, part))

    @staticmethod
    async def _run(line: Branch, coroutine: Any) -> tuple[Any, BaseException | None]:
        line.enter()
        try:
            return await coroutine, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 -- raised again where the gather is awaited; SystemExit, too
            return None, error
        finally:
            current.set(None)  # the task is kept by the line that it would keep

    def _branch_done(self, index: int, coroutine: Any, task: asyncio.Task[Any]) -> None:
        coroutine.close()  # one that was cancelled before it began would complain that nobody awaited it
        line = self._branches.pop(index)
        if self.execution.closed:
            line.task = None
            return
        self.execution.active -= 1
        if task.cancelled():
            value, error = None, asyncio.CancelledError()
        else:
            value, error = task.result()
        self._part_done(index, value, error)
        if self._then is not None and not self._branches:
            branch, self._then = self._then, None
            branch.raise_cancelled()
        self.execution.pump()

    def child_resolved(self, call: Call[Any]) -> None:
        """A call of this gather has its outcome."""
        self._part_done(call.index, *call.outcome())

    def _part_done(self, index: int, value: Any, error: BaseException | None) -> None:
        self._left -= 1
        self._results[index] = value
        if error is not None and self._failure is None and not self.abandoned:
            self._failure = error
            self._cancel_parts()
        if self.abandoned or self.done:
            return
        if self._failure is not None:
            if not self._branches:  # the siblings have unwound, as in a task group
                self.resolve(error=self._failure)
        elif self._left == 0:
            self.resolve(list(self._results))

    def _cancel_parts(self) -> None:
        if self._stopping:
            return  # once: a part that tidies up is not disturbed again
        self._stopping = True
        for part in self._parts:
            if isinstance(part, Call) and not part.done:
                part.abandon()
        for line in list(self._branches.values()):
            line.cancel()

    def unwind(self, branch: Branch) -> bool:
        """Cancel the parts, and `branch`, which waits for them, after the last has unwound; False if none needs to."""
        if self._then is None and not self.abandoned:
            self.abandoned = True
            self._cancel_parts()
            self._then = branch if self._branches else None
        return self._then is not None

    def abandon(self) -> None:
        """Stop every part."""
        self.abandoned = True
        self._cancel_parts()
