"""Steps: functions whose outcome is journaled, tried again when they fail, and never run again once recorded."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from perdure.engine.at_once import Fenced
from perdure.engine.branch import current, step_of
from perdure.engine.calls import Call
from perdure.engine.codec import decode, encode, shown_arguments
from perdure.engine.commits import write_rows
from perdure.engine.definition import StepFunction, StepInjected, step_function
from perdure.engine.entries import Entry
from perdure.engine.failure import describe, too_large
from perdure.engine.points import reach
from perdure.engine.retry import Retry
from perdure.engine.rows import JournalRow
from perdure.errors import ControlFlow, PerdureError, RunSuspended, StepFailed, WorkflowMisuse
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import PooledConnection, own_session
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution

_DEFAULT_RETRY = Retry()
_RUNS = load_queries("runs.sql")
log = structlog.get_logger(__name__)


class StepContext(StepInjected):
    """What a step or a tool may know of itself; a parameter annotated with it receives it.

    `run_id` and `step_id` name the step, `attempt` counts its tries from 1, and `idempotency_key` is the same over
    retries, replays and processes: give it to whoever must do the work at most once.
    """

    __slots__ = ("_execution", "attempt", "step_id")

    def __init__(self, execution: Execution, step_id: str, attempt: int) -> None:
        self._execution = execution
        self.step_id = step_id
        self.attempt = attempt

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._execution.run_id

    @property
    def idempotency_key(self) -> str:
        """The same text for every try of this step, in whatever process."""
        return f"{self._execution.run_id}/{self._execution.run.base_seq}/{self.step_id}"

    @property
    def unwanted(self) -> bool:
        """For a step that is being cancelled: whether its run has no use for it any more (the run is cancelled, or a
        sibling has failed) and what it began elsewhere should end. False when only this process lets go of the run, and
        another one repeats the step.
        """
        return self._execution.cancel_reason is not None or not self._execution.closed

    async def run_has_ended(self) -> bool:
        """For a step that is being cancelled and is not `unwanted`: whether its run has ended all the same, as one does
        that was terminated. False while Postgres cannot say.
        """
        try:
            found = await self._execution.host.pool.fetchval(_RUNS["has_ended"], self.run_id)
        except CONNECTION_ERRORS:
            return False
        return found is not False  # a run that is not there any more has ended

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell watchers how far the step is: `fraction` from 0 to 1. Best effort, and nothing waits for it."""
        self.delta("tool.progress", {"fraction": fraction, "text": text})

    def delta(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send an event of the run that is not journaled (a token, a progress mark)."""
        self._execution.host.events.passing(self._execution, kind, {"step": self.step_id, **data})


class StepCall(Call[Any]):
    """A step of a workflow."""

    kind = "step"
    can_inline: ClassVar[bool] = True
    __slots__ = (
        "_args",
        "_attempt",
        "_first_try",
        "_function",
        "_kwargs",
        "_not_before",
        "_retry",
        "_spec",
        "_timeout",
    )

    def __init__(
        self,
        execution: Execution,
        branch: Branch,
        name: str,
        digest: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: Retry | None,
        timeout: float | None,
    ) -> None:
        super().__init__(execution, branch, branch.take(), name, digest)
        self._function = function
        self._spec: StepFunction = step_function(function)
        self._args = args
        self._kwargs = kwargs
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry of {self.kind} {name!r} must be a Retry, not {type(retry).__name__}")
        self._retry = retry or _DEFAULT_RETRY
        self._timeout = timeout
        self._attempt = 1
        self._not_before: datetime | None = None
        self._first_try: datetime | None = None  # when the first try began, once one has failed

    # -- live ---------------------------------------------------------------------------------------------------------

    def go_live(self) -> None:
        """Run the function in a task of its own, now or when its next try is due."""
        self.inlined = False
        if self._not_before is not None and self._not_before > self.execution.host.clock.now():
            self.set_timer(self._not_before)
            return
        self.execution.busy += 1
        self.task = self.execution.spawn(self._attempt_once())
        self.task.add_done_callback(self._live_done)

    def on_due(self) -> None:
        """The next try is due."""
        self.go_live()

    def _live_done(self, _task: asyncio.Task[Any]) -> None:
        self.execution.busy -= 1
        self.execution.pump()

    def inline(self) -> Generator[Any, None, None]:
        """Run the function in the awaiting branch's task."""
        self.branch.in_step = True
        try:
            yield from self._attempt_once().__await__()
        finally:
            self.branch.in_step = False
            self.execution.busy -= 1

    async def _attempt_once(self) -> None:
        execution, host = self.execution, self.execution.host
        if not self.inlined:
            current.set(None)  # this task is no line of the workflow's
        if not host.may_start(execution):
            await host.wait_for_lease(execution)
        attempt = self._attempt
        kwargs = self._kwargs
        if self._spec.injected:
            injected = {
                name: kind(execution, self.path, attempt)
                for name, kind in self._spec.injected
                if issubclass(kind, StepContext)
            }
            kwargs = {**kwargs, **injected}
        started = host.clock.now()
        reach("step.before", execution.run_id, self.name)
        host.events.step_began(self, attempt, started)
        host.steps_running += 1
        host.counts.steps += 1
        before = step_of.set(self)
        try:
            if execution.trace is None:
                value = await self._run(kwargs)
            else:
                value = await execution.trace.step(self.name, self.path, attempt, lambda: self._run(kwargs))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if execution.closed or self.abandoned or (task is not None and task.cancelling()):
                raise
            self._failed(error, attempt, started)  # the function's own cancellation, which is only its error
        except RunSuspended:
            raise
        except Untravelable as error:
            self._untravelable(error, attempt, started)
        except BaseException as error:  # noqa: BLE001 -- whatever a step raises is its outcome
            self._failed(error, attempt, started)
        else:
            reach("step.after_effect", execution.run_id, self.name)
            self._succeeded(value, attempt, started)
        finally:
            host.steps_running -= 1
            host.events.step_over(self)
            step_of.reset(before)

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        if self._spec.is_async:
            if self._timeout is None:
                return await self._function(*self._args, **kwargs)
            async with asyncio.timeout(self._timeout):
                return await self._function(*self._args, **kwargs)
        async with asyncio.timeout(self._timeout):
            call = functools.partial(contextvars.copy_context().run, _in_thread, self._function, self._args, kwargs)
            value = await self.execution.host.loop.run_in_executor(self.execution.host.threads, call)
            return await value if asyncio.iscoroutine(value) else value

    def _text(self, value: Any) -> str:
        """The result as it travels. Raises `Untravelable`, which names what does not."""
        what = f"the result of {self.kind} {self.name!r}"
        try:
            text = self._spec.result.encode(value, what=what)
            if (refused := too_large(what, text, self.execution.host.settings.max_payload)) is not None:
                raise refused
            if not self._spec.result.plain:
                self._spec.result.decode(text, what=what)
        except TypeError as error:
            raise Untravelable(str(error)) from error
        return text

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:
        try:
            text = self._text(value)
        except Untravelable as error:
            self._untravelable(error, attempt, started)
            return
        reach("step.before_commit", self.execution.run_id, self.name)
        self._end(self.row("ok", text, attempt=attempt, started_at=started))

    def _end(self, row: JournalRow) -> None:
        row.input = shown_arguments(self._args, self._kwargs)
        self.write(row)

    def _untravelable(self, error: Untravelable, attempt: int, started: datetime) -> None:
        said = {**describe(error), "type": "TypeError", "untravelable": True}
        self._end(self.row("error", error=encode(said, what="error"), attempt=attempt, started_at=started))

    def _failed(self, error: BaseException, attempt: int, started: datetime) -> None:
        reach("step.failed", self.execution.run_id, self.name)
        said = (
            describe(WorkflowMisuse(f"{type(error).__name__} inside a step"))
            if isinstance(error, ControlFlow)
            else describe(error)
        )
        text = encode(said, what="error")
        pause = self._retry.pause(attempt, error, elapsed=lambda: self._since_first(started))
        self.execution.host.step_failed(self, error, attempt, pause)
        if pause is None:
            self._end(self.row("error", error=text, attempt=attempt, started_at=started))
        else:
            due = self.execution.host.clock.now() + timedelta(seconds=pause)
            self._end(self.row("error", error=text, attempt=attempt, due_at=due, kind="retry", started_at=started))

    def _since_first(self, started: datetime) -> float:
        return (self.execution.host.clock.now() - (self._first_try or started)).total_seconds()

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def on_row(self, row: JournalRow) -> None:
        """A retry row sets the next try; any other is the outcome."""
        if row.kind == "retry":
            self._first_try = self._first_try or row.started_at
            self._attempt = row.attempt + 1
            self._not_before = row.due_at
            if not self.execution.replaying:
                self.go_live()
        elif row.outcome == "ok":
            try:
                value = self._spec.result.decode(row.result, what=f"the journaled result of step {self.name!r}")
            except TypeError as error:
                self.resolve(error=error)
            else:
                self.resolve(value)
        else:
            self.resolve(error=_step_error(self.name, row))


class Untravelable(TypeError):
    """A result that cannot be journaled: the step has run, and its outcome is this error."""


def _in_thread(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:  # a future cannot carry it: whoever waits for the thread would wait for ever
        raise RuntimeError(f"the step raised StopIteration: {error}") from error


def _step_error(name: str, row: JournalRow) -> PerdureError | TypeError:
    cause = decode(row.error) or {}
    if cause.pop("untravelable", False):
        return TypeError(cause["message"])
    return StepFailed(name, row.attempt, cause)


class TransactionCall(StepCall):
    """A step whose own SQL commits together with its journal row: user SQL first, fence and row last."""

    kind = "transaction"
    __slots__ = ()

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        async def work(connection: PooledConnection) -> str:
            async with asyncio.timeout(self._timeout):
                return self._text(await self._function(connection, *self._args, **kwargs))

        return await self._commit(work, self._function)

    async def _commit(
        self,
        work: Callable[[PooledConnection], Awaitable[str]],
        marked: Callable[..., object],
        started: datetime | None = None,
    ) -> JournalRow:
        """The row, committed with what `work` writes; `work` gives the row's text, `marked` is for `own_session`."""
        delay = 0.05
        while True:
            async with self.execution.host.transactions:
                row = await self._try(work, marked, started)
            if row is not None:
                reach("step.after_commit", self.execution.run_id, self.name)
                return row
            await asyncio.sleep(delay)  # the database went away; nothing was done, so no attempt is counted
            delay = min(delay * 2, 2.0)

    async def _try(
        self,
        work: Callable[[PooledConnection], Awaitable[str]],
        marked: Callable[..., object],
        started: datetime | None,
    ) -> JournalRow | None:
        """The committed row; `None` when the connection was lost and nothing was committed."""
        execution = self.execution
        row: JournalRow | None = None
        lost = True
        try:
            async with execution.host.connections.acquire() as connection:
                try:
                    async with own_session(connection, marked), connection.transaction():
                        text = await work(connection)
                        execution.busy += 1
                        row = self.row("ok", text, attempt=self._attempt, started_at=started)
                        row.input = shown_arguments(self._args, self._kwargs)
                        reach("step.before_commit", execution.run_id, self.name)
                        # A patch marker that is not committed yet goes along: a replay of this row must find it.
                        patches = [Entry(execution, row=patch) for patch in execution.unwritten_patches.values()]
                        if not await write_rows(connection, [*patches, Entry(execution, row=row, first=True)]):
                            raise Fenced
                        reach("transaction.written", execution.run_id, self.name)
                finally:
                    lost = connection.is_closed()
        except Fenced:
            execution.fenced()
            raise
        except BaseException as error:
            if row is not None:
                if isinstance(error, CONNECTION_ERRORS) and await self._committed(row):
                    return row
                execution.settle(row.seq, None)
            if lost and isinstance(error, CONNECTION_ERRORS):
                log.warning("transaction repeated", action="transaction.retry", error=type(error).__name__)
                return None
            raise
        return row

    async def _committed(self, row: JournalRow) -> bool:
        """After a lost answer: wait for the transaction to be over (it holds the run's row), then look."""
        pool = self.execution.host.pool
        queries = self.execution.host.queries
        while True:
            try:
                await pool.execute(queries["lock_run"], self.execution.run_id)
                return bool(
                    await pool.fetchval(queries["has_row"], self.execution.run_id, row.seq, self.execution.epoch)
                )
            except CONNECTION_ERRORS:
                await asyncio.sleep(0.1)

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:  # noqa: ARG002 -- the row says both
        execution = self.execution
        execution.host.events.committed(execution, value)
        if execution.host.always_replay:  # this step must be over before a replay can begin
            execution.host.loop.call_soon(execution.settle, value.seq, value)
        else:
            execution.settle(value.seq, value)
