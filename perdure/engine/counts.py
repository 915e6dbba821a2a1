"""What a worker counts. Plain numbers: a step costs one addition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from perdure.observe.metrics import SLOW, Histogram, Reading

if TYPE_CHECKING:
    from perdure.engine.rows import ClaimedRun, Move
    from perdure.engine.worker import Worker

LEFT: Final = ("completed", "failed", "cancelled", "waiting", "paused", "blocked", "needs_review")
"""Told from 0 on: Prometheus sees no growth in a series that begins with 1."""


class Counts:
    """The numbers of one worker."""

    __slots__ = ("claimed", "left", "run_seconds", "started", "steps", "steps_failed", "steps_retried")

    def __init__(self) -> None:
        self.claimed = self.started = self.steps = self.steps_failed = self.steps_retried = 0
        self.left: Counter[str] = Counter()  # by the status that the run came to
        self.run_seconds = Histogram(SLOW)

    def moved(self, run: ClaimedRun, move: Move, now: float) -> None:
        """A run left memory by a committed move; `now` is in Unix seconds."""
        self.left[move.status] += 1
        if move.end_seq is not None:
            self.run_seconds.observe(max(0.0, now - run.started_at.timestamp()))


def readings(worker: Worker) -> Iterator[Reading]:
    """What there is to say of a worker."""
    agent, counts, journal = (worker.agent_name,), worker.counts, worker.journal
    yield "perdure_runs_claimed_total", agent, counts.claimed
    yield "perdure_runs_started_total", agent, counts.started
    for status in LEFT:
        yield "perdure_runs_left_total", (*agent, status), counts.left[status]
    yield "perdure_run_seconds", agent, counts.run_seconds
    yield "perdure_runs_in_memory", agent, len(worker.executions)
    yield "perdure_run_slots", agent, worker.settings.run_slots
    yield "perdure_claims_waiting", agent, worker.claims_waiting
    yield "perdure_runs_fenced_total", agent, worker.fences
    yield "perdure_steps_started_total", agent, counts.steps
    yield "perdure_step_failures_total", (*agent, "retried"), counts.steps_retried
    yield "perdure_step_failures_total", (*agent, "failed"), counts.steps_failed
    yield "perdure_steps_running", agent, worker.steps_running
    yield "perdure_journal_rows_total", agent, journal.rows
    yield "perdure_journal_commits_total", agent, journal.commits
    yield "perdure_journal_commit_seconds", agent, journal.seconds
    yield "perdure_journal_waiting", agent, journal.waiting
    yield "perdure_events_dropped_total", agent, worker.events.outgoing.lost
    yield "perdure_lease_held", agent, int(worker.leased)
