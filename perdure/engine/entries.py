"""What the journal is asked to write, and whom it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from perdure.engine.rows import JournalRow, Move, Snapshot, Start

Place = tuple[str, int]  # a run and the epoch under which somebody holds it


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

    def failed(self, error: BaseException) -> None:
        """The engine failed while it told the run of a commit."""


@dataclass(slots=True)
class Entry:
    """One thing to be written: a row (perhaps with a child to start or a snapshot to keep), or a move.

    After a move `woken` says that it was undone in the same commit (what the run waits for was there already), and
    `joined` that others than its parent wait for the run's end.
    """

    writer: Writer
    row: JournalRow | None = None
    start: Start | None = None
    snapshot: Snapshot | None = None
    move: Move | None = None
    woken: bool = False
    joined: bool = False
    first: bool = False  # perhaps the first row of its epoch: it says which process writes them

    @property
    def place(self) -> Place:
        """Whose word this is."""
        return self.writer.run_id, self.writer.epoch
