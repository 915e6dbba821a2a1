"""A step's row that is written by the one statement that also does its work: one round trip, one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import structlog

from perdure.engine.points import reach
from perdure.engine.rows import JournalRow
from perdure.errors import RunSuspended
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import PooledConnection
from perdure.store.vault import vault_of

if TYPE_CHECKING:
    from perdure.engine.calls import Call
    from perdure.engine.execution import Execution

Columns: TypeAlias = tuple[Any, ...]
"""The last parameters of such a statement: what `journal_last_row` takes after the run's id, or, without the output of
the run that ends with it, `journal_row`."""
NO_ROW: Final[Columns] = (None,) * 13
"""The same for a statement that writes no row."""
Statement: TypeAlias = Callable[[PooledConnection, Columns], Awaitable[str | None]]
"""Does the work and writes the row, in one statement; the row's result, or None when it wrote no row."""

FENCED: Final = "PD001"  # of migrations/0034_journal_row.sql
log = structlog.get_logger(__name__)


class Fenced(RunSuspended):
    """A commit of a run found that the run is another process's."""


def possible(execution: Execution) -> bool:
    """Whether a row may go this way: values are not sealed, and no patch marker has to go along."""
    return not execution.unwritten_patches and not vault_of(execution.host.pool).seals


def columns_of(row: JournalRow, epoch: int, output: str | None = None) -> Columns:
    """The columns of `row`, the result, the input and the run's `output` last."""
    return (
        epoch, row.seq, row.path, row.kind, row.name, row.hash, row.attempt, row.config_revision,
        row.started_at.timestamp(), row.finished_at.timestamp(), row.result, row.input, output,
    )  # fmt: skip


async def write_at_once(call: Call[Any], row: JournalRow, statement: Statement, output: str | None = None) -> bool:
    """Run `statement` until it has an answer; whether it wrote `row`, which then has its result.

    It is repeated with the same row when the connection was lost: of two tries that both reach Postgres the second
    finds the first one's row, and undoes itself. With `output` the run may end with the row. Raises `Fenced`, and what
    Postgres refuses.
    """
    execution = call.execution
    execution.busy += 1
    try:
        reach("step.before_commit", execution.run_id, call.name)
        async with execution.host.transactions:
            row.result = await _insist(execution, row, statement, output)
    except BaseException:  # a cancellation, too: later rows wait for this one's place
        execution.settle(row.seq, None)
        raise
    if row.result is None:
        execution.settle(row.seq, None)
        return False
    reach("step.after_commit", execution.run_id, call.name)
    return True


async def _insist(execution: Execution, row: JournalRow, statement: Statement, output: str | None) -> str | None:
    pool, queries, delay, again = execution.host.pool, execution.host.queries, 0.05, False
    while True:
        try:
            async with execution.host.connections.acquire() as connection:
                return await statement(connection, columns_of(row, execution.epoch, output))
        except CONNECTION_ERRORS as error:
            log.warning("statement repeated", action="statement.retry", error=type(error).__name__)
            again = True
        except asyncpg.PostgresError as error:
            fenced = error.sqlstate == FENCED
            if not fenced and not (again and isinstance(error, asyncpg.UniqueViolationError)):
                raise
            try:
                # A first try without an answer has written the row, and perhaps the run's end, which is a fence, too.
                found = (
                    await pool.fetchrow(queries["row_result"], execution.run_id, row.seq, execution.epoch)
                    if again
                    else None
                )
            except CONNECTION_ERRORS:
                found, fenced = None, False  # the next try finds it, or is refused like this one
            if found is not None:
                return str(found["result"])
            if fenced:
                execution.fenced()
                raise Fenced from None
        await asyncio.sleep(delay)
        delay = min(delay * 2, 2.0)
