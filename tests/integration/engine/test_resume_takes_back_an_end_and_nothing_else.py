"""What `run.resume` makes of a run's row and of its journal. Shown on the statement itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from perdure.engine import control, runs
from perdure.errors import Conflict

NOBODY: Any = SimpleNamespace(is_connected=False)


@pytest.fixture
async def stop(pool):
    """Make a run stop in a state, with what else is said of its row, and with rows `(path, kind, outcome)`."""

    async def stop(status: str, *rows: tuple[str, str, str], **changed: Any) -> None:
        await pool.execute("DELETE FROM journal")
        await pool.execute("DELETE FROM runs")
        await runs.accept(pool, [runs.new_start("r", "a", 1)])
        said = "attempts = 3, error = '{}', epoch = 1, pause_asked = TRUE"
        await pool.execute(f"UPDATE runs SET status = $1, {said}", status)
        if status in ("failed", "dead"):
            said = "finished_at = now(), end_seq = 9, untold = TRUE, parent_notified = TRUE"
            await pool.execute(f"UPDATE runs SET {said}")
        for column, value in changed.items():
            await pool.execute(f"UPDATE runs SET {column} = {value}")
        for seq, (path, kind, outcome) in enumerate(rows, start=1):
            await pool.execute(
                "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, "
                "finished_at) VALUES ('r', $1, $2, $3, $2, '', $4, 1, 1, now(), now())",
                seq, path, kind, outcome,
            )  # fmt: skip

    return stop


async def resumed(pool) -> Any:
    await control.resume(pool, NOBODY, "r")
    return await pool.fetchrow("SELECT * FROM runs")


async def paths(pool) -> list[str]:
    return [row["path"] for row in await pool.fetch("SELECT path FROM journal ORDER BY seq")]


@pytest.mark.parametrize("status", ["blocked", "paused", "needs_review"])
async def test_one_that_had_only_stopped_goes_on_where_it_stood(stop, pool, status):
    await stop(status, ("1", "step", "error"))
    turn = await pool.fetchval("SELECT turn FROM runs")
    run = await resumed(pool)
    assert (run["status"], run["attempts"], run["error"], run["pause_asked"]) == ("pending", 0, None, False)
    assert run["turn"] == turn, "it keeps its place among the turns of its session"
    assert await paths(pool) == ["1"]


async def test_one_that_was_put_off_and_paused_waits_on_for_its_time(stop, pool):
    await stop("paused", epoch=0, wake_at="now() + interval '1 hour'")
    assert (await resumed(pool))["status"] == "waiting"
    await stop("paused", epoch=0, wake_at="now() - interval '1 hour'")
    assert (await resumed(pool))["status"] == "pending"
    await stop("paused", epoch=1, wake_at="now() + interval '1 hour'")
    assert (await resumed(pool))["status"] == "pending", "its code knows what it waits for"


@pytest.mark.parametrize("status", ["failed", "dead"])
async def test_an_end_is_taken_back_whole(stop, pool, status):
    await stop(status, cancel_reason="'enough'")
    turn = await pool.fetchval("SELECT turn FROM runs")
    run = await resumed(pool)
    assert (run["status"], run["attempts"], run["error"], run["pause_asked"]) == ("pending", 0, None, False)
    assert (run["finished_at"], run["end_seq"], run["untold"], run["parent_notified"]) == (None, None, False, False)
    assert (run["seq_floor"], run["cancel_reason"]) == (9, None)
    assert run["turn"] > turn, "it goes to the end of its session's line"


async def test_the_step_it_failed_of_is_taken_back_and_no_other_row(stop, pool):
    await stop("failed", ("1", "step", "ok"), ("2", "retry", "error"), ("3", "step", "error"), ("2", "step", "error"))
    await resumed(pool)
    assert await paths(pool) == ["1", "3"]
    await stop("failed", ("1", "step", "ok"), ("2", "call", "open"), ("2", "call", "error"))
    await resumed(pool)
    assert await paths(pool) == ["1", "2"], "of a child it is asked again"
    await stop("failed", ("1", "step", "error"), ("2", "step", "ok"))
    await resumed(pool)
    assert await paths(pool) == ["1", "2"], "it went on after that failure"
    await stop("failed", ("1", "retry", "error"), ("1", "step", "ok"))
    await resumed(pool)
    assert await paths(pool) == ["1", "1"], "it went well in the end"
    for last in (("2", "step", "ok"), ("2", "event", "error"), ("2", "signal", "timeout")):
        await stop("failed", ("1", "step", "ok"), last)
        await resumed(pool)
        assert await paths(pool) == ["1", "2"], last


async def test_what_was_undone_to_the_end_has_nothing_to_go_on_with(stop, pool):
    undone = ("1", "step", "ok"), ("undo:1", "undo", "ok")
    await stop("failed", *undone)
    with pytest.raises(Conflict, match="was undone"):
        await resumed(pool)
    await stop("dead", *undone, cancel_reason="'enough'")
    assert (await resumed(pool))["cancel_reason"] == "enough", "its processes were lost: it undoes on"
    await stop("failed", *undone, ("undo:0", "undo", "error"), cancel_reason="'enough'")
    assert (await resumed(pool))["cancel_reason"] == "enough"
    assert await paths(pool) == ["1", "undo:1"], "the undo that failed is tried again"


@pytest.mark.parametrize("status", ["pending", "waiting", "running", "completed", "cancelled"])
async def test_there_is_nothing_to_resume_of_others(stop, pool, status):
    await stop(status, pause_asked=False)
    before = await pool.fetchrow("SELECT * FROM runs")
    with pytest.raises(Conflict, match=f"is {status}"):
        await resumed(pool)
    assert await pool.fetchrow("SELECT * FROM runs") == before
