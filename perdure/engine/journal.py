"""The journal's writer: one commit for whatever all runs of a process have to say at that moment.

Rows wait only while an earlier commit is on its way: whatever has come by then goes next (group commit, no added
delay). Each run hears once what became of each of its rows: recorded, refused (that row alone), or fenced (the run is
another's).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import asyncpg
import structlog

from perdure.engine.commits import commit_moves, commit_rows
from perdure.engine.entries import Entry, Place
from perdure.engine.points import reach
from perdure.engine.rows import Move
from perdure.observe.metrics import FAST, Histogram
from perdure.store.failures import CONNECTION_ERRORS, refuses
from perdure.store.postgres import Kept

log = structlog.get_logger(__name__)
T = TypeVar("T")

STRANGE_TRIES = 5


@dataclass(slots=True)
class Journal:
    """Writes the rows and moves of every run of this process, grouped."""

    pool: Kept
    after_commit: Callable[[Sequence[Entry]], None]
    max_batch: int = 2000
    _waiting: list[Entry] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: bool = False
    commits: int = 0
    rows: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(FAST))

    @property
    def waiting(self) -> int:
        """Rows and moves that are in no commit yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether everything that was added is decided."""
        return not self._waiting and not self._writing

    def add(self, entry: Entry) -> None:
        """Queue `entry` for the next commit."""
        self._waiting.append(entry)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        kept = self.pool
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    batch = self._waiting[: self.max_batch]
                    del self._waiting[: self.max_batch]
                    await self._write(batch)
                    del batch  # while nothing is written, nothing keeps the runs that have left
        finally:
            await kept.release()

    async def _write(self, batch: list[Entry]) -> None:
        self._writing = True
        began = perf_counter()
        try:
            rows = [entry for entry in batch if entry.row is not None]
            await self._write_rows(rows)
            if 0 < len(rows) < len(batch):
                reach("commit.between")
            await self._write_moves([entry for entry in batch if entry.move is not None])
        finally:
            self._writing = False
            self.seconds.observe(perf_counter() - began)

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def _write_rows(self, entries: list[Entry]) -> None:
        if not entries:
            return
        reach("commit.before")
        try:
            held = await _patiently(lambda: commit_rows(self.pool, entries))
        except Exception as error:
            if refuses(error):
                await self._split_rows(entries, error)
            else:
                log.exception("journal rows not written", action="journal.failed", rows=len(entries))
                for entry in entries:
                    entry.writer.failed(error)
            return
        reach("commit.after")
        self.commits += 1
        self.rows += len(entries)
        written: list[Entry] = []
        for entry in entries:
            if entry.place in held:
                written.append(entry)
                _tell(entry, entry.writer.recorded, entry.row)
            else:
                _tell(entry, entry.writer.fenced)
        self._after(written)

    async def _split_rows(self, entries: list[Entry], error: Exception) -> None:
        """Find the row that Postgres refuses: the others must not pay for it."""
        if len(entries) > 1:
            middle = len(entries) // 2
            await self._write_rows(entries[:middle])
            await self._write_rows(entries[middle:])
            return
        (entry,) = entries
        log.error("journal row refused", action="journal.refused", run_id=entry.writer.run_id, error=str(error)[:300])
        _tell(entry, entry.writer.refused, entry.row, str(error)[:1000])

    # -- moves --------------------------------------------------------------------------------------------------------

    async def _write_moves(self, entries: list[Entry]) -> None:
        if not entries:
            return
        repeated = False

        async def commit() -> dict[Place, bool]:
            nonlocal repeated
            again, repeated = repeated, True
            return await commit_moves(self.pool, entries, again=again)

        reach("move.before")
        try:
            done = await _patiently(commit)
        except Exception as error:
            if refuses(error):
                await self._split_moves(entries, error)
            else:
                log.exception("runs not moved; they are given back", action="journal.failed", runs=len(entries))
                for entry in entries:
                    entry.writer.fenced()
            return
        reach("move.after")
        self.commits += 1
        for entry in entries:
            if entry.place in done and entry.move is not None:
                entry.joined = done[entry.place]
                _tell(entry, entry.writer.moved, entry.move)
            else:
                _tell(entry, entry.writer.fenced)
        self._after([entry for entry in entries if entry.place in done])

    async def _split_moves(self, entries: list[Entry], error: Exception) -> None:
        if len(entries) > 1:
            middle = len(entries) // 2
            await self._write_moves(entries[:middle])
            await self._write_moves(entries[middle:])
            return
        (entry,) = entries
        log.error("run's end refused", action="journal.refused", run_id=entry.writer.run_id, error=str(error)[:300])
        seq = entry.move.end_seq if entry.move is not None else None
        said = '{"type":"OutcomeRefused","message":"the database refused the outcome of this run"}'
        again = Move("failed" if seq is not None else "needs_review", error=said, end_seq=seq)
        if entry.move == again:
            _tell(entry, entry.writer.failed, error)
            return
        entry.move = again
        await self._write_moves([entry])

    def moved(self, entry: Entry) -> None:
        """A move was committed with a step's row, by another statement: tell of it."""
        _tell(entry, entry.writer.moved, entry.move)
        self._after([entry])

    def _after(self, entries: list[Entry]) -> None:
        if not entries:
            return
        try:
            self.after_commit(entries)
        except Exception:
            log.exception("what follows a commit failed; the scheduler repeats it", action="journal.after_failed")


async def _patiently(commit: Callable[[], Awaitable[T]]) -> T:
    """Commit, over lost connections and restarts, until Postgres has said what became of it.

    What is neither the database's word nor a known fault of the connection is tried again a few times, then raised.
    """
    delay, strange = 0.05, 0
    while True:
        try:
            return await commit()
        except Exception as error:
            strange += not isinstance(error, (*CONNECTION_ERRORS, asyncpg.PostgresError))
            if refuses(error) or strange > STRANGE_TRIES:
                raise
            log.warning("journal write will be repeated", action="journal.retry", error=type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)


def _tell(entry: Entry, tell: Callable[..., None], *what: object) -> None:
    """A run that fails at what it hears must not keep the others from hearing."""
    try:
        tell(*what)
    except Exception as error:
        log.exception("a run failed at a commit", action="journal.tell_failed", run_id=entry.writer.run_id)
        entry.writer.failed(error)
