"""Steps whose row is committed together with SQL of ours: the opening of a turn, and the answer that ends it.

To a replay they are a transaction and a step like any other. Where one commit does the work of two, a process that dies
in between leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from perdure.engine.at_once import NO_ROW, Columns, Statement, possible, write_at_once
from perdure.engine.codec import identity, shown_arguments
from perdure.engine.rows import JournalRow
from perdure.engine.steps import TransactionCall
from perdure.store.postgres import Connection, PooledConnection, keeps_session
from perdure.store.vault import vault_of

if TYPE_CHECKING:
    from perdure.engine.context import Context
    from perdure.engine.retry import Retry

T = TypeVar("T")

Also: TypeAlias = Callable[[Connection, Columns], Awaitable[None]]
"""One statement that is committed with a step's row: it writes the row, too, when the columns are not `NO_ROW`. It is
repeated, alone, when the connection is lost on the way."""


class CommittedStep(TransactionCall):
    """A step that runs outside of any transaction, and whose row may be committed with what follows from it."""

    kind = "step"
    __slots__ = ("_follows",)

    def __init__(self, follows: Callable[[Any], Also | None], *given: Any) -> None:
        super().__init__(*given)
        self._follows = follows

    async def _run(self, kwargs: dict[str, Any]) -> Any:
        started = self.execution.host.clock.now()
        value = await super(TransactionCall, self)._run(kwargs)  # as any step's
        also = self._follows(value)
        if also is None:
            return value
        text = self._text(value)
        if possible(self.execution) and vault_of(self.execution.host.pool).plain([text]):

            async def statement(connection: PooledConnection, columns: Columns) -> str:
                await also(cast("Connection", connection), columns)
                return text

            row = self.row("ok", text, attempt=self._attempt, started_at=started)
            row.input = shown_arguments(self._args, self._kwargs)
            await write_at_once(self, row, statement)
            return row

        async def work(connection: PooledConnection) -> str:
            await also(cast("Connection", connection), NO_ROW)
            return text

        return await self._commit(work, keeps_session(also), started)

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:
        if isinstance(value, JournalRow):
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
