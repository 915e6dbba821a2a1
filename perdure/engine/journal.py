"""The journal's writer: one commit for whatever all runs of a process have to say at that moment.

Rows wait only while an earlier commit is on its way: whatever has come by then goes next (group commit, no added
delay). Each run hears what became of its rows: recorded, refused (that row alone), or fenced (the run is another's).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg
import structlog

from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries
from perdure.engine.rows import JournalRow, Move, Start
from perdure.engine.runs import ACCEPT, accept_arguments

_SQL = load_queries("engine.sql")
_RUNS = load_queries("runs.sql")
log = structlog.get_logger(__name__)

CONNECTION_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


class Writer(Protocol):
    """A run as the journal sees it: whose rows these are, and who hears of them."""

    run_id: str
    epoch: int

    def recorded(self, row: JournalRow) -> None:
        """`row` is committed."""

    def refused(self, row: JournalRow, reason: str) -> None:
        """Postgres cannot hold `row`; nothing else was harmed."""

    def fenced(self) -> None:
        """The epoch has moved on: this process no longer holds the run."""

    def moved(self, move: Move) -> None:
        """`move` is committed."""


@dataclass(slots=True)
class Entry:
    """One thing to be written: a row (perhaps with a child to start), or a move."""

    writer: Writer
    row: JournalRow | None = None
    start: Start | None = None
    move: Move | None = None


@dataclass(slots=True)
class Journal:
    """Writes the rows and moves of every run of this process, grouped."""

    pool: Pool
    after_commit: Callable[[Sequence[Entry]], Awaitable[None] | None]
    max_batch: int = 2000
    _waiting: list[Entry] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    commits: int = 0
    rows: int = 0

    def add(self, entry: Entry) -> None:
        """Queue `entry` for the next commit."""
        self._waiting.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = self._waiting[: self.max_batch]
                del self._waiting[: self.max_batch]
                await self._write(batch)

    async def _write(self, batch: list[Entry]) -> None:
        """Write one batch, over lost connections and restarts, until Postgres has said what became of it."""
        delay = 0.05
        while True:
            try:
                await self._commit(batch)
            except CONNECTION_ERRORS as error:
                log.warning(
                    "journal write will be repeated",
                    action="journal.retry",
                    rows=len(batch),
                    error=type(error).__name__,
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            except (asyncpg.PostgresError, ValueError, OverflowError) as error:
                await self._split(batch, error)
                return
            else:
                return

    async def _split(self, batch: list[Entry], error: Exception) -> None:
        """Find the entry that Postgres refuses: the others must not pay for it."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        (entry,) = batch
        log.error("journal row refused", action="journal.refused", run_id=entry.writer.run_id, error=str(error)[:300])
        if entry.row is not None:
            entry.writer.refused(entry.row, str(error)[:1000])
        elif entry.move is not None:
            entry.move.output = None
            entry.move.status = "failed"
            entry.move.error = '{"type":"OutcomeRefused","message":"the database refused the outcome of this run"}'
            await self._write(batch)

    async def _commit(self, batch: list[Entry]) -> None:
        rows = [entry for entry in batch if entry.row is not None]
        moves = [entry for entry in batch if entry.move is not None]
        if rows:
            starts = [entry for entry in rows if entry.start is not None]
            signals = [entry for entry in rows if entry.row is not None and entry.row.signal_seq is not None]
            async with self.pool.acquire() as connection:
                if starts or signals:
                    async with connection.transaction():
                        held = await write_rows(connection, rows)
                        await _write_starts(connection, [e for e in starts if e.writer.run_id in held])
                        await _consume(connection, [e for e in signals if e.writer.run_id in held])
                else:
                    held = await write_rows(connection, rows)
            self.commits += 1
            self.rows += len(rows)
            written = [entry for entry in rows if entry.writer.run_id in held]
            self._tell(rows, held)
            await self._after(written)
        if moves:
            done = await self._move(moves)
            self.commits += 1
            for entry in moves:
                if entry.writer.run_id in done and entry.move is not None:
                    entry.writer.moved(entry.move)
                else:
                    entry.writer.fenced()
            await self._after([entry for entry in moves if entry.writer.run_id in done])

    def _tell(self, rows: list[Entry], held: set[str]) -> None:
        for entry in rows:
            if entry.writer.run_id in held and entry.row is not None:
                entry.writer.recorded(entry.row)
            else:
                entry.writer.fenced()

    async def _after(self, entries: list[Entry]) -> None:
        if entries and (more := self.after_commit(entries)) is not None:
            await more

    async def _move(self, entries: list[Entry]) -> set[str]:
        moves = [(entry.writer, entry.move) for entry in entries if entry.move is not None]
        records = await self.pool.fetch(
            _SQL["move"],
            [writer.run_id for writer, _ in moves],
            [writer.epoch for writer, _ in moves],
            [move.status for _, move in moves],
            [move.output for _, move in moves],
            [move.error for _, move in moves],
            [move.wake_at for _, move in moves],
            [move.waiting_signals for _, move in moves],
            [move.waiting_children for _, move in moves],
            [move.end_seq for _, move in moves],
            [move.task for _, move in moves],
            [move.base_seq for _, move in moves],
        )
        return {record["run_id"] for record in records}


async def write_rows(connection: PooledConnection, entries: Sequence[Entry]) -> set[str]:
    """Insert the rows of `entries` under their fence; the ids of the runs that this process still holds."""
    fences = {entry.writer.run_id: entry.writer.epoch for entry in entries}
    pairs = [(entry.writer.run_id, entry.row) for entry in entries if entry.row is not None]
    rows = [row for _, row in pairs]
    records = await connection.fetch(
        _SQL["flush"],
        list(fences.keys()),
        list(fences.values()),
        [run_id for run_id, _ in pairs],
        [row.seq for row in rows],
        [row.path for row in rows],
        [row.kind for row in rows],
        [row.name for row in rows],
        [row.hash for row in rows],
        [row.outcome for row in rows],
        [row.result for row in rows],
        [row.error for row in rows],
        [row.attempt for row in rows],
        [row.due_at for row in rows],
        [row.signal_seq for row in rows],
        [row.config_revision for row in rows],
        [row.started_at for row in rows],
        [row.finished_at for row in rows],
    )
    return {record["run_id"] for record in records}


async def _write_starts(connection: PooledConnection, entries: list[Entry]) -> None:
    starts = [entry.start for entry in entries if entry.start is not None]
    if not starts:
        return
    sessions = [f"{start.agent_name}/{start.session_id}" for start in starts if start.session_id]
    if sessions:
        await connection.execute(_RUNS["lock_sessions"], sessions)
    await connection.fetch(ACCEPT, *accept_arguments(starts))


async def _consume(connection: PooledConnection, entries: list[Entry]) -> None:
    pairs = [(e.writer.run_id, e.row.signal_seq) for e in entries if e.row is not None]
    if pairs:
        await connection.execute(_SQL["consume_signals"], [run_id for run_id, _ in pairs], [seq for _, seq in pairs])
