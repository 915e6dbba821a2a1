"""However many runs are pending, running, waiting or ended: what is done to a few of them looks at those alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from perdure.engine.at_once import NO_ROW
from perdure.store.queries import load_queries

ENGINE, RUNS, SESSIONS = load_queries("engine.sql"), load_queries("runs.sql"), load_queries("sessions.sql")
IDS = sorted(f"{n:032x}" for n in range(10, 30))
ONES, NONE = [1] * len(IDS), [None] * len(IDS)
LINES, NUMBERS, PLACES = "\n".join(IDS), f"{{{'1,' * 19}1}}", f"{{{','.join(map(str, range(1, 21)))}}}"
STEPS = ["\n".join([text] * 20) for text in ("1", "s", "h", "0")]
KEYS = {
    "runs_pkey",
    *(f"journal_{shelf}_pkey" for shelf in range(3)),
    "processes_pkey",
    "runs_sessions",
    "signals_pkey",
    "queues_pkey",
    "signals_unconsumed",
    "signals_once",
    "sessions_pkey",
    "sessions_by_id",
    "session_results_open",
}

STATEMENTS = {
    "claim": (ENGINE["claim"], ("p", IDS, "a", "h", 1, ["run"], [""], ["s"], [True], False)),
    "history": (ENGINE["history"], (IDS, [0] * 20)),
    "flush": (
        ENGINE["flush"],
        (LINES, NUMBERS, PLACES, NUMBERS, *STEPS, *[NUMBERS] * 3, *[[]] * 6, "", "{}"),
    ),
    "move": (ENGINE["move"], (IDS, ONES, ["completed"] * 20, ["1"] * 20, *(NONE,) * 4, ONES, NONE, NONE)),
    "moved_before": (ENGINE["moved_before"], (IDS, ONES, ["completed"] * 20)),
    "release": (ENGINE["release"], (IDS, ONES)),
    "recheck_waits": (ENGINE["recheck_waits"], (IDS,)),
    "unconsumed_signals": (ENGINE["unconsumed_signals"], (IDS,)),
    "children": (ENGINE["children"], (IDS,)),
    "send_signals": (RUNS["send_signals"], (IDS, "go", ["1"] * len(IDS), "once")),
    "get": (RUNS["get"], (IDS[0],)),
    "outcomes": (RUNS["outcomes"], (IDS,)),
    "accepted_before": (RUNS["accepted_before"], (IDS,)),
    "next_turns": (ENGINE["next_turns"], (["a"], ["s"])),
    "consume_signals": (ENGINE["consume_signals"], (IDS, ONES)),
    "give_back_signals": (ENGINE["give_back_signals"], (IDS, ONES)),
    "join_children": (ENGINE["join_children"], (IDS,)),
    "lock_joined": (ENGINE["lock_joined"], (IDS,)),
    "open_turn": (SESSIONS["open_turn"], ("a", "s", IDS[0], ["1"], 1, *NO_ROW[1:-2])),
    "append_messages": (SESSIONS["append_messages"], ("a", "s", IDS[0], ["1"], True, 1, 1, 1.0, *NO_ROW)),
}

FILL = """
INSERT INTO runs (shelf, run_id, agent_name, task, task_hash, status, epoch, process_id, wake_at, finished_at,
                  waiting_signals)
SELECT n % 3, lpad(to_hex(n), 32, '0'), 'a', '1', 'h', s, 1, CASE s WHEN 'running' THEN 'p' END,
       CASE s WHEN 'waiting' THEN now() + n * interval '1 second' END, CASE s WHEN 'completed' THEN now() END,
       CASE s WHEN 'waiting' THEN '{go}'::text[] END
FROM generate_series(1, 12000) AS n,
     LATERAL (SELECT ('{pending,running,waiting,completed}'::text[])[1 + n % 4]) AS t (s)
"""


JOURNAL = """
INSERT INTO journal (shelf, run_id, seq, path, kind, name, hash, outcome, epoch, started_at, finished_at)
SELECT shelf, run_id, seq, seq, 'step', 's', 'h', 'ok', 1, now(), now() FROM runs, generate_series(1, 3) AS seq
"""
SIGNALS = "INSERT INTO signals (run_id, name, payload) SELECT run_id, 'go', '1' FROM runs"
TALKS = """
INSERT INTO sessions (agent_name, session_id, turn_run_id) SELECT 'a', 's' || n, lpad(to_hex(n), 32, '0')
FROM generate_series(1, 3000) AS n
"""
SMALL = {"processes", "retention", "journal_shelves"}
READS = {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan"}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.mark.parametrize("analyzed", [False, True], ids=["statistics of an empty table", "statistics of today"])
@pytest.mark.parametrize("once", [False, True], ids=["planned each time", "planned once"])
async def test_a_statement_about_a_few_runs_reads_no_more_than_those(pool, analyzed, once):
    async with pool.acquire() as connection:
        shelves = await connection.fetch("SELECT shelf FROM journal_shelves ORDER BY shelf")
        assert [record["shelf"] for record in shelves] == [1, 2]
        for table in ("runs", "journal_0", "journal_1", "journal_2", "signals", "sessions"):
            await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            await connection.execute(f"ANALYZE {table}")
        for statement in (
            FILL,
            JOURNAL,
            SIGNALS,
            TALKS,
            *(["ANALYZE runs, journal, signals, sessions"] if analyzed else []),
        ):
            await connection.execute(statement)
        wrong = []
        for name, (statement, arguments) in STATEMENTS.items():
            for node in nodes(await plan(connection, name, statement, arguments, once=once)):
                way = (node["Node Type"], node.get("Relation Name"), node.get("Index Name"))
                if way[0] in READS and way[1] not in SMALL and way[2] not in KEYS:
                    wrong.append((name, *way))
        assert not wrong, wrong


async def test_the_plan_that_a_turns_statement_keeps_from_a_small_table_finds_runs_by_their_keys_too(pool):
    async with pool.acquire() as connection:
        await connection.execute(FILL.replace("12000", "300"))
        await connection.execute("ANALYZE runs")
        for name in ("open_turn", "append_messages", "next_turns"):
            found = list(nodes(await plan(connection, name, *STATEMENTS[name], once=True)))
            used = {node["Index Name"] for node in found if "runs" in node.get("Index Name", "")}
            assert used <= KEYS, (name, used)
            assert not [node for node in found if node.get("Relation Name") == "runs" and "Seq" in node["Node Type"]]


async def plan(connection: Any, name: str, statement: str, arguments: tuple[Any, ...], *, once: bool) -> dict[str, Any]:
    """How `statement` would be executed: for these arguments, or, `once`, for any."""
    if once:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE {name} AS {statement}")
        statement, arguments = f"EXECUTE {name} ({', '.join(['NULL'] * len(arguments))})", ()
    rows = await connection.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
    found: dict[str, Any] = orjson.loads(rows[0][0])[0]["Plan"]
    return found


@pytest.mark.parametrize("once", [False, True], ids=["planned each time", "planned once"])
@pytest.mark.parametrize("some", [0, 3, 300])
@pytest.mark.parametrize("name", ["due_timers", "stale_pending"])
async def test_runs_that_are_due_are_not_compared_with_all_others(pool, name, some, once):
    """A plan from when there were few, kept, compared each of a thousand rows with all that waited: it took seconds."""
    arguments = {"due_timers": (datetime(2100, 1, 1, tzinfo=UTC), 1000), "stale_pending": (1.0, 1000, [], [])}
    async with pool.acquire() as connection:
        await connection.execute(FILL.replace("12000", str(some)))
        await connection.execute("ANALYZE runs")
        found = list(nodes(await plan(connection, name, ENGINE[name], arguments[name], once=once)))
        assert [node for node in found if node.get("Alias") == "runs"], "the plan has the table"
        joins = [node for node in found if "Join" in node["Node Type"] or "Loop" in node["Node Type"]]
        assert not joins, joins
