"""The statements of every run's way, and the scheduler's loops, read by index, however many runs have ended."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from perdure.store.queries import load_queries

FINISHED = int(os.environ.get("PERDURE_TEST_FINISHED_RUNS", "30000"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENGINE, RUNS, CONTROL, ENDS = (load_queries(f"{name}.sql") for name in ("engine", "runs", "control", "ends"))
IDS = ["open-1", "open-2", "done-77"]

# What is asked of the time of the asking.
JUST_NOW = object()
HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "claim": (ENGINE["claim"], ("p", IDS, "a", "h", 0, ["run"], [""], ["x"], [True], False)),
    "suspect": (ENGINE["suspect"], ("a", -1, ["run"], [""])),
    "history": (ENGINE["history"], (IDS, [0, 0, 0])),
    "flush": (
        ENGINE["flush"],
        ("open-1", "{1}", "{1}", "{9}", "1", "s", "h", "1", "{0}", "{0}", "{0}", [], [], [], [], [], [], "", "{}"),
    ),
    "move": (ENGINE["move"], (IDS[:1], [1], ["completed"], ["1"], [None], [None], [None], [None], [9], [None], [None])),
    "release": (ENGINE["release"], (IDS, [1, 1, 1])),
    "recheck_waits": (ENGINE["recheck_waits"], (IDS,)),
    "unconsumed_signals": (ENGINE["unconsumed_signals"], (IDS,)),
    "children": (ENGINE["children"], (IDS,)),
    "asked_for": (ENGINE["asked_for"], (IDS,)),
    "due_timers": (ENGINE["due_timers"], (NOW, 1000)),
    "next_timer": (ENGINE["next_timer"], ()),
    "stale_pending": (ENGINE["stale_pending"], (3.0, 1000, ["many"], [0.5])),
    "untold_children": (ENGINE["untold_children"], (NOW, 1000)),
    "requeue_lost": (ENGINE["requeue_lost"], ("p", 10, 1000)),
    "bury_process": (ENGINE["bury_process"], ("p", JUST_NOW)),
    "held": (ENGINE["held"], ("p",)),
    "get": (RUNS["get"], ("done-77",)),
    "list": (RUNS["list"], ("a", None, None, None, None, 50, None, None, None, None, None)),
    "send_signals": (RUNS["send_signals"], (["open-1"], "go", ["1"], None)),
    "family": (RUNS["family"], ("done-77", 100)),
    "cancel": (CONTROL["cancel"], ("open-1", "x", "{}")),
    "pause": (CONTROL["pause"], ("open-1",)),
    "terminate": (CONTROL["terminate"], ("open-1", "x", "{}")),
    "not_undone": (CONTROL["not_undone"], ("open-1",)),
    "resume": (CONTROL["resume"], ("done-77",)),
    "take_callbacks": (ENDS["take_callbacks"], (32, 60.0)),
    "untold_ends": (ENDS["untold_ends"], (NOW, 1000)),
    "doubt_ends": (ENDS["doubt_ends"], ("p", JUST_NOW)),
}  # fmt: skip
BIG = {"runs", "journal_0", "journal_1", "journal_2", "signals", "callbacks"}


@pytest.fixture
async def full(pool):
    await pool.execute(
        "INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until,"
        " workflows, versions) VALUES ('p', 'a', 'p', 1, now(), now() + interval '1 hour', '{run}', '{\"\"}')"
    )
    await pool.execute(
        "INSERT INTO runs (shelf, run_id, agent_name, task, task_hash, status, epoch, process_id, end_seq, started_at,"
        " finished_at) SELECT n % 3, 'done-' || n, 'a', '1', 'h', 'completed', 1, 'p', 3,"
        " now() - n * interval '1 second', now() - n * interval '1 second' FROM generate_series(1, $1::integer) AS n",
        FINISHED,
    )
    await pool.execute(
        "INSERT INTO journal (shelf, run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at)"
        " SELECT n % 3, 'done-' || n, 1, '1', 'step', 's', 'h', 'ok', 1, now(), now()"
        " FROM generate_series(1, $1::integer) AS n",
        FINISHED,
    )
    await pool.execute(
        "INSERT INTO signals (run_id, name, payload, consumed)"
        " SELECT 'done-' || n, 's', '1', TRUE FROM generate_series(1, $1::integer) AS n",
        FINISHED,
    )
    await pool.execute(
        "INSERT INTO callbacks (callback_id, run_id, end_seq, status, target, state)"
        " SELECT 'cb-' || n, 'done-' || n, 3, 'completed', '{}', 'delivered' FROM generate_series(1, $1::integer) AS n",
        FINISHED,
    )
    for run_id, status in (("open-1", "running"), ("open-2", "pending")):
        await pool.execute(
            "INSERT INTO runs (run_id, agent_name, task, task_hash, status, epoch, process_id)"
            " VALUES ($1, 'a', '1', 'h', $2, 1, 'p')",
            run_id,
            status,
        )
    await pool.execute("ANALYZE runs, journal, signals, callbacks, processes")
    return pool


def scans(plan: dict[str, Any]) -> list[str]:
    """The large tables that a plan reads from end to end."""
    found = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] in BIG else []
    return found + [each for part in plan.get("Plans", ()) for each in scans(part)]


async def test_no_statement_of_a_runs_way_reads_a_table_from_end_to_end(full):
    bad: dict[str, list[str]] = {}
    async with full.acquire() as connection:
        for name, (query, arguments) in HOT.items():
            said = [datetime.now(UTC) if one is JUST_NOW else one for one in arguments]
            text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *said)
            if found := scans(orjson.loads(text)[0]["Plan"]):
                bad[name] = found
    assert bad == {}
