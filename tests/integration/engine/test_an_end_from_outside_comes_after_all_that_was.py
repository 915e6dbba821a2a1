"""Who ends a run that no code ends: its seq is used by nothing before it, late rows are refused, and it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from perdure.engine import control, runs
from perdure.store.queries import load_queries

SQL = load_queries("engine.sql")
NOBODY: Any = SimpleNamespace(is_connected=False)
ENDED = (
    "SELECT status, epoch, end_seq, untold, finished_at IS NOT NULL AS over, process_id FROM runs WHERE run_id = 'r'"
)


async def cancel(pool) -> None:
    """Nobody runs its workflow, and there is nothing to be undone."""
    await pool.execute("UPDATE runs SET status = 'pending'")
    assert (await control.cancel(pool, NOBODY, "r", "enough"))["way"] == "ended"


async def terminate(pool) -> None:
    assert (await control.terminate(pool, NOBODY, "r", "enough"))["ended"]


async def lose(pool) -> None:
    """Its last process."""
    await pool.execute("UPDATE runs SET status = 'running', attempts = 3")
    await pool.fetch(SQL["requeue_lost"], "p", 3, 10)


WAYS = [(cancel, "cancelled"), (terminate, "cancelled"), (lose, "dead")]


@pytest.fixture
async def run(pool):
    """A run with a journal, in its second epoch."""
    start = runs.new_start("r", "a", 1)
    start.callback = '{"subject":"told"}'
    await runs.accept(pool, [start])
    await pool.execute("UPDATE runs SET epoch = 2, process_id = 'p'")
    await pool.execute(
        "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, finished_at) "
        "SELECT 'r', n, n::text, 'step', 's', '', 'ok', 1, 1, now(), now() FROM generate_series(1, 3) AS n"
    )


@pytest.mark.parametrize(("end", "status"), WAYS)
@pytest.mark.parametrize(("what", "seq"), [("seq_floor = 0", 4), ("base_seq = 7", 8), ("seq_floor = 9", 10)])
async def test_its_seq_comes_after_the_journal_the_earlier_lives_and_the_ends_that_were_taken_back(
    run, pool, end, status, what, seq
):
    await pool.execute(f"UPDATE runs SET {what}")
    await end(pool)
    assert tuple(await pool.fetchrow(ENDED)) == (status, 3, seq, True, True, None)


@pytest.mark.parametrize(("end", "status"), WAYS)
async def test_an_end_after_one_that_was_taken_back_is_called_back_too(run, pool, end, status):
    await pool.execute("UPDATE runs SET status = 'failed', end_seq = 4, finished_at = now()")
    await control.resume(pool, NOBODY, "r")
    await pool.execute("UPDATE runs SET process_id = 'p'")
    await end(pool)
    told = await pool.fetch("SELECT end_seq, status FROM callbacks ORDER BY end_seq")
    assert [tuple(each) for each in told] == [(4, "failed"), (5, status)]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "dead"])
async def test_what_has_ended_stays_as_it_is(run, pool, status):
    await pool.execute("UPDATE runs SET status = $1, end_seq = 4, finished_at = now(), cancel_reason = 'first'", status)
    before = await pool.fetchrow("SELECT * FROM runs")
    assert (await control.cancel(pool, NOBODY, "r", "second"))["way"] is None
    assert not (await control.terminate(pool, NOBODY, "r", "second"))["ended"]
    assert await pool.fetch(SQL["requeue_lost"], "p", 1, 10) == []
    assert await pool.fetchrow("SELECT * FROM runs") == before


async def test_the_first_reason_is_kept(run, pool):
    await pool.execute("UPDATE runs SET status = 'running'")
    for reason in ("first", "second"):
        assert (await control.cancel(pool, NOBODY, "r", reason))["way"] == "asked"
    assert await pool.fetchval("SELECT cancel_reason FROM runs") == "first"
    await terminate(pool)
    assert await pool.fetchval("SELECT cancel_reason FROM runs") == "first"


async def test_a_run_ends_by_its_own_code_when_somebody_runs_it_or_it_has_something_to_undo(run, pool):
    async def way(changed: str) -> str | None:
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("UPDATE runs SET status = 'waiting'")
            await connection.execute(changed)
            control_sql = load_queries("control.sql")["cancel"]
            found = (await connection.fetchrow(control_sql, "r", "enough", "{}"))["way"]
            await transaction.rollback()
        return str(found)

    process = ("p", "a", "p", 1, 3600.0, ["run"], [""])
    await pool.execute(SQL["register_process"], *process)
    assert await way("SELECT 1") == "woken"
    assert await way("UPDATE runs SET epoch = 0") == "ended", "it has not begun"
    assert await way("UPDATE runs SET workflow = 'other'") == "ended", "nobody could tidy up"
    assert await way("UPDATE processes SET state = 'gone'") == "ended"
    assert await way("UPDATE processes SET lease_until = now() - interval '1 second'") == "ended"
    assert await way("UPDATE processes SET agent_name = 'b'") == "ended"
    await pool.execute("UPDATE journal SET kind = 'on_failure' WHERE seq = 2")
    assert await way("UPDATE processes SET state = 'gone'") == "woken", "somebody will come who can undo it"
    assert await way("UPDATE runs SET status = 'blocked'") == "ended", "it cannot go on"
