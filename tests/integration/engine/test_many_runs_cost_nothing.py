"""Runs that wait are rows, not memory; runs that have ended are not looked at by whatever wakes and claims others."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.store.queries import load_queries
from tests.engine_support import at_rest, signal
from tests.platform import in_process
from tests.support import eventually

SQL = load_queries("engine.sql")
RUNS = load_queries("runs.sql")
WAITING = 1500
FILL = """
INSERT INTO runs (run_id, agent_name, task, task_hash, status, epoch, process_id, wake_at, waiting_signals, started_at,
                  finished_at, parent_run_id, parent_notified, dispatched_at)
SELECT format('%s-%s', $1::text, n), 'many', '{}', 'h', $1, 1, CASE WHEN $1 = 'running' THEN 'p' END,
       CASE WHEN $1 = 'waiting' THEN now() + n * interval '1 second' END, CASE WHEN $1 = 'waiting' THEN ARRAY['go'] END,
       now(), CASE WHEN $1 = 'completed' THEN now() END, CASE WHEN n % 10 = 0 THEN format('parent-%s', n) END, TRUE,
       now()
FROM generate_series(1, $2::integer) AS n
"""
JOURNAL = """
INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at)
SELECT run_id, 1, '1', 'step', 's', 'h', 'ok', 1, now(), now() FROM runs WHERE status = 'completed'
"""
SIGNALS = "INSERT INTO signals (run_id, name, payload, consumed) SELECT run_id, 'go', '1', TRUE FROM runs"
# What happens on the way of a run, and what every loop of a scheduler asks, with arguments that find little.
HOT = {
    "claim": ("p", ["waiting-1"], "many", "h", 0, ["run"], [""], ["h"], [True], False),
    "history": (["completed-1"], [0]),
    "recheck_waits": (["waiting-1"],),
    "unconsumed_signals": (["waiting-1"],),
    "children": (["completed-1"],),
    "tell_parents": (["completed-10"],),
    "due_timers": (None, 1000),
    "next_timer": (),
    "stale_pending": (3.0, 1000, ["many"], [0.5]),
    "untold_children": (None, 1000),
    "held": ("p",),
    "asked_for": (["waiting-1"],),
    "release": (["waiting-1"], [1]),
    "requeue_lost": ("p", 10, 1000),
}
LARGE = {"runs", "journal_0", "signals"}


class Many(BaseAgent):
    name = "many"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return await ctx.wait_signal("go")


async def test_waiting_runs_are_not_in_memory_and_all_wake(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Many)
        process.worker.linger = 0.0
        await runs.accept(pool, [runs.new_start(f"r{n}", "many", n) for n in range(WAITING)])
        for n in range(WAITING):
            runs.wake(nc, f"r{n}", "many")

        def in_state(status: str) -> Any:
            return pool.fetchval("SELECT count(*) = $2 FROM runs WHERE status = $1", status, WAITING)

        await eventually(lambda: in_state("waiting"), timeout=30)
        await at_rest(process)
        worker = process.worker
        assert not worker._mailbox._signals
        assert not worker._mailbox._children
        assert not worker._claims.waiting
        assert not worker.events._indexes
        for first in range(0, WAITING, 100):
            await asyncio.gather(*(signal(platform, f"r{n}", "go", n) for n in range(first, first + 100)))
        await eventually(lambda: in_state("completed"), timeout=30)
        outputs = await pool.fetch("SELECT run_id, output::text AS output FROM runs")
        assert {r["run_id"]: r["output"] for r in outputs} == {f"r{n}": str(n) for n in range(WAITING)}


@pytest.fixture
async def full(pool):
    for status, amount in (("completed", 40_000), ("waiting", 4_000), ("running", 20)):
        await pool.execute(FILL, status, amount)
    await pool.execute(JOURNAL)
    await pool.execute(SIGNALS)
    await pool.execute("ANALYZE")


async def test_no_query_on_the_way_of_a_run_reads_a_large_table_from_end_to_end(pool, full):
    read: dict[str, set[str]] = {}
    for name, said in HOT.items():
        now = await pool.fetchval("SELECT now() - interval '1 hour'")
        arguments = [now if each is None else each for each in said]
        async with pool.acquire() as connection, connection.transaction():
            [row] = await connection.fetch(f"EXPLAIN (FORMAT JSON) {SQL[name]}", *arguments)
        if found := _scanned(orjson.loads(row[0])[0]["Plan"]) & LARGE:
            read[name] = found
    assert read == {}


def _scanned(plan: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    left = [plan]
    while left:
        node = left.pop()
        if node["Node Type"] == "Seq Scan":
            found.add(node["Relation Name"])
        left += node.get("Plans", ())
    return found
