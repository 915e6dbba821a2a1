"""Random sequences of what processes, callers and schedulers do to runs, on the statements themselves, beside a model.

The model says who may write, what a wait finds, and what is left; Postgres must agree after each operation.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as bounds
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from perdure.engine import control, runs
from perdure.engine.commits import commit_moves, commit_rows
from perdure.engine.entries import Entry
from perdure.engine.rows import JournalRow, Move
from perdure.errors import Conflict
from perdure.settings import Settings
from perdure.store.postgres import Pool, create_pool
from perdure.store.queries import load_queries

SQL = load_queries("engine.sql")
EXAMPLES = int(os.environ.get("PERDURE_TEST_EXAMPLES", "0"))  # others than those of the suite, as many as it says
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAST = NOW - timedelta(hours=1)
NAMES = ("go", "stop")
ENDED = ("completed", "failed", "cancelled", "dead")
NOBODY: Any = SimpleNamespace(is_connected=False)  # no wake-up is sent: what happens is what Postgres says
OFTEN = (
    *["claim", "flush", "wait", "signal"] * 3,
    *["consume"] * 2,
    *["accept", "accept_again", "start", "lose", "release", "cancel", "resume", "repeat", "end", "wake_due"],
)


@dataclass
class Run:
    """A run as the model has it."""

    status: str = "pending"
    epoch: int = 0
    process: str | None = None
    rows: list[tuple[int, int]] = field(default_factory=list)  # (seq, epoch)
    floor: int = 0
    waits_for: str | None = None
    timed: bool = False
    asked_to_end: bool = False
    heard_of_it: bool = False
    signals: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # not consumed
    consumed: int = 0
    keys: set[str] = field(default_factory=set)

    @property
    def last(self) -> int:
        return max([self.floor, *(seq for seq, _ in self.rows)])


@dataclass
class Claim:
    """A run as some process holds it, or believes that it does."""

    run_id: str
    epoch: int
    seq: int
    repeat: list[JournalRow] = field(default_factory=list)  # what it wrote last, whose answer may have been lost


class Machine(RuleBasedStateMachine):
    """Operations in any order; `holds` decides what each must do."""

    pool: Pool
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Run] = {}
        self.live: set[str] = set()
        self.processes: list[str] = []
        self.claims: list[Claim] = []

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def holds(self, claim: Claim) -> bool:
        run = self.model[claim.run_id]
        return run.status == "running" and run.epoch == claim.epoch

    def teardown(self) -> None:
        for table in ("journal", "signals", "runs", "processes"):
            self.do(self.pool.execute(f"DELETE FROM {table}"))

    @initialize()
    def begin(self) -> None:
        self.accept()
        self.start()

    @rule(data=st.data(), what=st.sampled_from(OFTEN))
    def operate(self, data: Any, what: str) -> None:
        """One rule for all, so that what makes runs move comes often enough; the newest claims come most."""
        pick = data.draw
        if what in ("accept", "start", "wake_due"):
            if what == "wake_due" or len(self.model) + len(self.live) < 6:
                getattr(self, what)()
        elif what == "signal":
            self.signal(
                self.any_run(data), pick(st.sampled_from(NAMES)), pick(st.sampled_from([None, None, "k1", "k2"]))
            )
        elif what in ("accept_again", "cancel", "resume"):
            getattr(self, what)(self.any_run(data))
        elif what in ("claim", "lose"):
            getattr(self, what)(pick(st.sampled_from(self.processes[-3:])))
        elif self.claims:
            claim = pick(st.sampled_from([*self.claims[-1:] * 3, *self.claims[-5:]]))
            if what == "flush":
                lives = [each for each in self.claims if each.run_id == claim.run_id]  # a process may hold rows of two
                others = pick(st.lists(st.sampled_from([*lives, *self.claims[-2:]]), max_size=2))
                self.flush([claim, *others], pick(st.integers(1, 3)), heard=pick(st.booleans()))
            elif what == "consume":
                self.consume(claim, pick(st.sampled_from(NAMES)))
            elif what == "wait":
                self.wait(claim, pick(st.sampled_from([*NAMES, None])), again=pick(st.booleans()))
            elif what == "end":
                self.end(claim, pick(st.sampled_from(["completed", "failed", "failed", "blocked"])))
            else:
                getattr(self, what)(claim)

    def any_run(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(list(self.model))))

    # -- callers ------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        run_id = f"r{len(self.model)}"
        start = runs.new_start(run_id, "a", None)
        assert self.do(runs.accept(self.pool, [start])) == {run_id: "accepted"}
        self.model[run_id] = Run()

    def accept_again(self, run_id: str) -> None:
        status = self.do(runs.accept(self.pool, [runs.new_start(run_id, "a", None)]))
        assert status == {run_id: self.model[run_id].status}
        assert self.do(runs.accept(self.pool, [runs.new_start(run_id, "a", "other")])) == {run_id: "conflict"}

    def signal(self, run_id: str, name: str, key: str | None) -> None:
        run = self.model[run_id]
        try:
            record = self.do(runs.send_signal(self.pool, run_id, name, "payload", key))
        except Conflict:
            assert run.status in ENDED
            assert key not in run.keys
            return
        new = key not in run.keys
        assert not new or run.status not in ENDED
        assert record["sent"] == new
        if not new:
            return
        run.keys |= {key} if key else set()
        run.signals[name] += 1
        woken = run.status == "waiting" and run.waits_for == name
        assert record["woken"] == woken
        if woken:
            run.status = "pending"

    def cancel(self, run_id: str) -> None:
        run = self.model[run_id]
        self.do(control.cancel(self.pool, NOBODY, run_id, "enough"))
        if run.status in ENDED:
            return
        if run.status == "running":
            run.asked_to_end = True
        elif run.epoch > 0 and self.live and run.status in ("pending", "waiting"):
            run.asked_to_end, run.status = True, "pending"
        else:
            run.status, run.epoch, run.process = "cancelled", run.epoch + 1, None

    def resume(self, run_id: str) -> None:
        run = self.model[run_id]
        try:
            self.do(control.resume(self.pool, NOBODY, run_id))
        except Conflict:
            assert run.status not in ("failed", "blocked")
            return
        assert run.status in ("failed", "blocked")
        if run.status == "failed":
            run.floor, run.asked_to_end = run.last + 1, False
        run.status = "pending"

    # -- processes ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        process = f"p{len(self.processes)}"
        said = (process, "a", process, len(self.processes), 3600.0, ["run"], [""])
        self.do(self.pool.execute(SQL["register_process"], *said))
        self.live.add(process)
        self.processes.append(process)

    def lose(self, process: str) -> None:
        assert bool(self.do(self.pool.fetchval(SQL["bury_process"], process, NOW))) == (process in self.live)
        self.do(self.pool.fetch(SQL["requeue_lost"], process, 1000, 100))
        self.live.discard(process)
        for run in self.model.values():
            if run.status == "running" and run.process == process:
                run.status, run.epoch, run.process = "pending", run.epoch + 1, None

    def claim(self, process: str) -> None:
        wanted = list(self.model)
        said = (process, wanted, "a", "hash", 0, ["run"], [""], ["h"], [True])
        records = [  # those that two processes were lost with are claimed by themselves
            *self.do(self.pool.fetch(SQL["claim"], *said, False)),
            *self.do(self.pool.fetch(SQL["claim"], *said, True)),
        ]
        expected = {run_id for run_id in wanted if self.model[run_id].status == "pending"}
        assert {record["run_id"] for record in records} == (expected if process in self.live else set())
        for record in sorted(records, key=lambda each: each["run_id"]):
            run = self.model[record["run_id"]]
            run.status, run.epoch, run.process = "running", run.epoch + 1, process
            run.waits_for, run.timed = None, False
            assert record["epoch"] == run.epoch
            history = self.do(self.pool.fetch(SQL["history"], [record["run_id"]], [record["base_seq"]]))
            assert [(row["seq"], row["epoch"]) for row in history] == run.rows, "a claimer reads all that was written"
            self.claims.append(Claim(record["run_id"], run.epoch, max(run.last, record["seq_floor"])))

    def flush(self, held: list[Claim], rows: int, heard: bool) -> None:
        """One group commit of several claims, of which some may be stale; also two of one run."""
        chosen = list({(claim.run_id, claim.epoch): claim for claim in held}.values())
        entries = []
        for claim in chosen:
            claim.repeat = [_row(claim.seq + at + 1, "cancel" if heard and at == 0 else "step") for at in range(rows)]
            claim.seq += rows
            entries += [Entry(claim, row=row) for row in claim.repeat]
        written = self.do(commit_rows(self.pool, entries))
        assert written == {(claim.run_id, claim.epoch) for claim in chosen if self.holds(claim)}
        for claim in chosen:
            if self.holds(claim):
                run = self.model[claim.run_id]
                run.rows += [(row.seq, claim.epoch) for row in claim.repeat]
                run.heard_of_it |= heard

    def repeat(self, claim: Claim) -> None:
        """The answer was lost: the same rows again count once, and for a stale holder not at all."""
        if claim.repeat:
            written = self.do(commit_rows(self.pool, [Entry(claim, row=row) for row in claim.repeat]))
            assert bool(written) == self.holds(claim)

    def consume(self, claim: Claim, name: str) -> None:
        """A wait takes the first signal of its name; consuming it is part of the commit."""
        run = self.model[claim.run_id]
        found = self.do(self.pool.fetch(SQL["unconsumed_signals"], [claim.run_id]))
        assert len(found) == sum(run.signals.values())
        first = next((each["seq"] for each in found if each["name"] == name), None)
        if first is None:
            return
        claim.seq += 1
        claim.repeat = [_row(claim.seq, "signal", first)]
        self.do(commit_rows(self.pool, [Entry(claim, row=row) for row in claim.repeat]))
        if self.holds(claim):
            run.rows.append((claim.seq, claim.epoch))
            run.signals[name] -= 1
            run.consumed += 1

    def wait(self, claim: Claim, name: str | None, again: bool) -> None:
        """To wait for a signal, or for a time that has come; what is there already wakes it in the same commit."""
        run, held = self.model[claim.run_id], self.holds(claim)
        move = Move("waiting", wake_at=PAST if name is None else None, waiting_signals=name)
        entry = Entry(claim, move=move)
        done = self.do(commit_moves(self.pool, [entry], again=False))
        assert bool(done) == held
        if not held:
            return
        run.process, run.waits_for, run.timed = None, name, name is None
        woken = (name is not None and run.signals[name] > 0) or (run.asked_to_end and not run.heard_of_it)
        assert entry.woken == woken
        run.status = "pending" if woken else "waiting"
        if again and not woken:
            assert self.do(commit_moves(self.pool, [Entry(claim, move=move)], again=True)), "a repeat finds the first"

    def end(self, claim: Claim, status: str) -> None:
        run, held = self.model[claim.run_id], self.holds(claim)
        seq = None if status == "blocked" else claim.seq + 1
        done = self.do(commit_moves(self.pool, [Entry(claim, move=Move(status, end_seq=seq))], again=False))
        assert bool(done) == held
        if held:
            run.status = status

    def release(self, claim: Claim) -> None:
        given = self.do(self.pool.fetch(SQL["release"], [claim.run_id], [claim.epoch]))
        assert bool(given) == self.holds(claim)
        if given:
            run = self.model[claim.run_id]
            run.status, run.epoch, run.process = "pending", run.epoch + 1, None

    def wake_due(self) -> None:
        woken = {record["run_id"] for record in self.do(self.pool.fetch(SQL["due_timers"], NOW, 100))}
        assert woken == {run_id for run_id, run in self.model.items() if run.status == "waiting" and run.timed}
        for run_id in woken:
            self.model[run_id].status = "pending"

    # -- what is always true ------------------------------------------------------------------------------------------

    @invariant()
    def postgres_says_the_same(self) -> None:
        self.do(self._compare())

    async def _compare(self) -> None:
        records = await self.pool.fetch(
            "SELECT run_id, status, epoch, process_id, wake_at, waiting_signals, finished_at FROM runs"
        )
        assert {r["run_id"]: (r["status"], r["epoch"]) for r in records} == {
            run_id: (run.status, run.epoch) for run_id, run in self.model.items()
        }
        for record in records:
            assert (record["finished_at"] is not None) == (record["status"] in ENDED)
            if record["status"] == "running":
                assert record["process_id"] in self.live, "a run that runs does so in a process that lives"
            if record["status"] == "waiting":
                assert record["wake_at"] or record["waiting_signals"], "a run that waits can be woken"
        written: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in await self.pool.fetch("SELECT run_id, seq, epoch FROM journal ORDER BY run_id, seq"):
            written[row["run_id"]].append((row["seq"], row["epoch"]))
        for run_id, run in self.model.items():
            assert written[run_id] == run.rows
            epochs = [epoch for _, epoch in run.rows]
            assert epochs == sorted(epochs), "no row of an older epoch after one of a newer"
        consumed = await self.pool.fetch("SELECT run_id, count(*) AS n FROM signals WHERE consumed GROUP BY run_id")
        assert {r["run_id"]: r["n"] for r in consumed} == {
            i: run.consumed for i, run in self.model.items() if run.consumed
        }
        twice = "SELECT 1 FROM journal WHERE signal_seq IS NOT NULL GROUP BY run_id, signal_seq HAVING count(*) > 1"
        assert not await self.pool.fetch(twice), "a signal is consumed once"


def _row(seq: int, kind: str, signal_seq: int | None = None) -> JournalRow:
    return JournalRow(seq, str(seq), kind, "n", "h", "ok", '"x"', None, 1, None, signal_seq, 0, NOW, NOW)


@pytest.mark.timeout(600)
def test_any_sequence_of_operations_leaves_what_the_model_says(settings: Settings) -> None:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        pool = runner.run(create_pool(settings, "model", size=2))
        Machine.pool, Machine.runner = pool, runner
        try:
            run_state_machine_as_test(Machine, settings=BOUNDS)
        finally:
            pool.terminate()


BOUNDS = bounds(
    max_examples=EXAMPLES or 80,
    derandomize=not EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
