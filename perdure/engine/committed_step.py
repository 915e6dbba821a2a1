"""Steps whose row is committed together with SQL of ours: the opening of a turn, and the answer that ends it.

To a replay they are a transaction and a step like any other. Where one commit does the work of two, a process that dies
in between leaves nothing half done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from perdure.engine.at_once import NO_ROW, Columns, Statement, possible, write_at_once
from perdure.engine.codec import identity, shown_arguments
from perdure.engine.failure import too_large
from perdure.engine.points import reach
from perdure.engine.rows import JournalRow, Move
from perdure.engine.steps import TransactionCall
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Connection, PooledConnection, keeps_session
from perdure.store.vault import vault_of

if TYPE_CHECKING:
    from perdure.engine.context import Context
    from perdure.engine.retry import Retry

T = TypeVar("T")

GOES_ON: Final = object()
"""No output: the run's code goes on after the step."""


@dataclass(frozen=True, slots=True)
class Also:
    """One statement that is committed with a step's row: it writes the row, too, when the columns are not `NO_ROW`.

    It is repeated, alone, when the connection is lost on the way. With an `output` the run's code does no more than
    to return it: the statement may end the run, and says whether others than its parent wait for that, or None when it
    did not.
    """

    statement: Callable[[Connection, Columns], Awaitable[bool | None]]
    output: Any = GOES_ON


class CommittedStep(TransactionCall):
    """A step that runs outside of any transaction, and whose row may be committed with what follows from it."""

    kind = "step"
    __slots__ = ("_ending", "_follows", "_joined")

    def __init__(self, follows: Callable[[Any], Also | None], *given: Any) -> None:
        super().__init__(*given)
        self._follows = follows
        self._ending: Move | None = None  # that is committed with the row
        self._joined = False

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        started = self.execution.host.clock.now()
        value = await super(TransactionCall, self)._run(kwargs)  # as any step's
        also = self._follows(value)
        if also is None:
            return value
        text = self._text(value)
        if possible(self.execution) and vault_of(self.execution.host.pool).plain([text]):
            return await self._at_once(also, text, started)

        async def work(connection: PooledConnection) -> str:
            await also.statement(cast("Connection", connection), NO_ROW)
            return text

        return await self._commit(work, keeps_session(also.statement), started)

    async def _at_once(self, also: Also, text: str, started: datetime) -> JournalRow:
        row, output = self.row("ok", text, attempt=self._attempt, started_at=started), self._output(also)
        row.input = shown_arguments(self._args, self._kwargs)
        joined: bool | None = None
        heard = False

        async def statement(connection: PooledConnection, columns: Columns) -> str:
            nonlocal joined, heard
            joined = await also.statement(cast("Connection", connection), columns)
            heard = True
            return text

        if output is not None:
            reach("end.before", self.execution.run_id)
        await write_at_once(self, row, statement, output)
        if output is not None and not heard:
            joined = await self._ended_before()
        if joined is not None:
            self._ending, self._joined = Move("completed", output=output, end_seq=row.seq + 1), joined
        return row

    def _output(self, also: Also) -> str | None:
        """The output with which the run may end in the commit of this step's row."""
        execution = self.execution
        alone = len(execution.pending) == 1 and not execution.ready and execution.cancel_reason is None
        if also.output is GOES_ON or not alone or execution.pausing or execution.host.always_replay:
            return None
        output = execution.definition.result.encode(also.output, what="the output")
        if too_large("the output", output, execution.host.settings.max_payload) is not None:
            return None  # which is told where the code returns it
        return output if vault_of(execution.host.pool).plain([output]) else None

    async def _ended_before(self) -> bool | None:
        execution = self.execution
        while True:
            try:
                found = await execution.host.pool.fetchrow(
                    execution.host.queries["moved_before"], [execution.run_id], [execution.epoch], ["completed"]
                )
            except CONNECTION_ERRORS:
                await asyncio.sleep(0.1)
            else:
                return None if found is None else bool(found["joined"])

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:
        if self._ending is not None:
            self.execution.host.events.committed(self.execution, value)
            self.execution.ended(self._ending, joined=self._joined)
        elif isinstance(value, JournalRow):
            super()._succeeded(value, attempt, started)
        else:
            super(TransactionCall, self)._succeeded(value, attempt, started)


class ShortTransaction(TransactionCall):
    """A transaction that one statement can mostly do the work of."""

    __slots__ = ("_statement",)

    def __init__(self, statement: Statement, *given: Any) -> None:
        super().__init__(*given)
        self._statement = statement

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        if possible(self.execution):
            row = self.row("ok", attempt=self._attempt)
            row.input = shown_arguments(self._args, self._kwargs)
            if await write_at_once(self, row, self._statement):
                return row
        return await super()._run(kwargs)


def committed_step(
    ctx: Context,
    name: str,
    fn: Callable[..., Coroutine[Any, Any, T]],
    *args: Any,
    follows: Callable[[T], Also | None],
    retry: Retry | None = None,
    timeout: float | None = None,
) -> Awaitable[T]:
    """`ctx.step` whose outcome commits together with what `follows` gives for it, or, for None, as any other.

    `follows` is called with what `fn` returned, in the process that ran it, and never on replay.
    """
    execution = ctx._execution  # noqa: SLF001 -- the engine's own
    digest = identity(name, args, {})
    return CommittedStep(follows, execution, execution.line(), name, digest, fn, args, {}, retry, timeout)


def short_transaction(
    ctx: Context, name: str, fn: Callable[..., Awaitable[T]], *args: Any, statement: Statement
) -> Awaitable[T]:
    """`ctx.transaction`, whose work and row `statement` writes if it can; else `fn` does all of it."""
    execution = ctx._execution  # noqa: SLF001 -- the engine's own
    digest = identity(name, args, {})
    return ShortTransaction(statement, execution, execution.branch(), name, digest, fn, args, {}, None, None)


def is_body(ctx: Context, function: Callable[..., Any]) -> bool:
    """Whether `function` is the run's workflow itself, not called by another: then what it returns is the output."""
    return getattr(ctx._execution.definition.call, "__func__", None) is function  # noqa: SLF001 -- the engine's own
