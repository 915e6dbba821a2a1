"""What the engine reads from Postgres and writes to it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from perdure.engine.start_options import StartOptions

TERMINAL = frozenset({"completed", "failed", "cancelled", "dead"})


@dataclass(slots=True)
class JournalRow:
    """One journaled outcome. `result` and `error` are JSON text; `seq` orders the rows of a run.

    `outcome` is `ok`, `error` or `timeout` for an end, `open` for what has begun (a sleep, a child), and a row of
    kind `retry` stands for a failed attempt with the next one due at `due_at`.
    """

    seq: int
    path: str
    kind: str
    name: str
    hash: str
    outcome: str
    result: str | None
    error: str | None
    attempt: int
    due_at: datetime | None
    signal_seq: int | None
    config_revision: int | None
    started_at: datetime
    finished_at: datetime
    epoch: int = 0  # under which it was written, of rows that were read
    input: str | None = None  # what a step was called with, for people: JSON text, which no replay reads


@dataclass(slots=True)
class Start:
    """A run to accept: from a caller, or as a child of another run. `task` is JSON text."""

    run_id: str
    agent_name: str
    workflow: str
    session_id: str | None
    task: str
    task_hash: str
    parent_run_id: str | None = None
    parent_path: str | None = None
    options: StartOptions | None = None
    callback: str | None = None  # whom to tell of its end, as JSON text
    trace: str | None = None  # the W3C traceparent of whoever starts it
    holder: Holder | None = None  # the process for which it is to be claimed at once
    held: tuple[str | None, ...] | None = None  # what `holder` is told, once it holds the run: see `held` below
    held_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a slot for a run that is being accepted, and what the run would stand on there."""

    process_id: str
    version: str
    source_hash: str
    config_hash: str
    config_revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A configuration that runs stand on, as it is kept; `values` is JSON text."""

    agent_name: str
    hash: str
    revision: int
    values: str


@dataclass(slots=True)
class Move:
    """A run leaves `running`: to an end, to a wait, or back to `pending`. Texts are JSON; lists are line-separated."""

    status: str
    output: str | None = None
    error: str | None = None
    wake_at: datetime | None = None
    waiting_signals: str | None = None
    waiting_children: str | None = None
    end_seq: int | None = None
    task: str | None = None
    base_seq: int | None = None
    given_back: tuple[int, ...] = ()  # signals that waits took which were over: the next life gets them


@dataclass(slots=True)
class ClaimedRun:
    """A run as its claimer holds it, under `epoch`."""

    run_id: str
    agent_name: str
    epoch: int
    workflow: str
    version: str | None
    session_id: str | None
    parent_run_id: str | None
    task: str
    attempts: int
    config_revision: int | None
    config_hash: str | None
    cancel_reason: str | None
    started_at: datetime
    base_seq: int
    seq_floor: int
    queue: str | None = None
    trace: str | None = None  # the W3C traceparent of whoever started it


def claimed(agent_name: str, record: asyncpg.Record) -> ClaimedRun:
    """A row of the `claim` query."""
    return ClaimedRun(
        run_id=record["run_id"],
        agent_name=agent_name,
        epoch=record["epoch"],
        workflow=record["workflow"],
        version=record["version"],
        session_id=record["session_id"],
        parent_run_id=record["parent_run_id"],
        task=record["task"],
        attempts=record["attempts"],
        config_revision=record["config_revision"],
        config_hash=record["config_hash"],
        cancel_reason=record["cancel_reason"],
        started_at=record["started_at"],
        base_seq=record["base_seq"],
        seq_floor=record["seq_floor"],
        queue=record["queue_name"],
        trace=record["trace"],
    )


def held(agent_name: str, config: tuple[str, int], started_at: datetime, said: Sequence[Any]) -> ClaimedRun:
    """A run that was claimed as it was accepted, of what `Start.held` says. Raises `TypeError` when that is nothing."""
    run_id, workflow, version, session_id, trace, task = said
    if not (isinstance(run_id, str) and isinstance(task, str)):
        raise TypeError("a run's id and its task must be text")
    return ClaimedRun(
        run_id, agent_name, 1, workflow, version, session_id, None, task, 1, config[1], config[0], None, started_at,
        0, 0, None, trace,
    )  # fmt: skip


_JOURNAL_FIELDS: Final = len(fields(JournalRow)) - 1  # `input` is not read


def journaled(record: asyncpg.Record) -> JournalRow:
    """A row of the `history` query, whose columns begin with the fields in their order."""
    return JournalRow(*record[:_JOURNAL_FIELDS])
