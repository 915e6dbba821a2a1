"""The journal's writer: one commit for whatever all runs of a process have to say at that moment.

Rows wait only while an earlier commit is on its way: whatever has come by then goes next (group commit, no added
delay). Each run hears once what became of each of its rows: recorded, refused (that row alone), or fenced (the run is
another's).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import asyncpg
import structlog

from perdure.engine.journal_sql import Fences, forget_start, move_runs, save_rows
from perdure.engine.rows import JournalRow, Move, Snapshot, Start
from perdure.store.failures import CONNECTION_ERRORS, refuses
from perdure.store.postgres import Pool

log = structlog.get_logger(__name__)
T = TypeVar("T")


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
