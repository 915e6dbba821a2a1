"""A signal, a child's end or a cancellation that meets a run on its way to a wait wakes it, whoever dies in between."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from perdure.engine import control, runs
from perdure.engine.commits import commit_moves
from perdure.engine.entries import Entry
from perdure.engine.rows import Move
from perdure.store.queries import load_queries

SQL = load_queries("engine.sql")
WAITS = "UPDATE runs SET status = 'waiting', waiting_signals = '{go}', waiting_children = '{c}' WHERE run_id = 'p'"


class Holder:
    run_id, epoch = "p", 0


@pytest.fixture
async def parent(pool):
    """A running parent `p` and its running child `c`."""
    starts = [runs.new_start("p", "a", 1), runs.new_start("c", "a", 2, parent=("p", "1"))]
    await runs.accept(pool, starts)
    await pool.execute("UPDATE runs SET status = 'running'")


async def status(pool, run_id: str = "p") -> str:
    return await pool.fetchval("SELECT status FROM runs WHERE run_id = $1", run_id)


async def go_to_sleep(pool) -> dict:
    move = Move("waiting", waiting_signals="go", waiting_children="c")
    return await commit_moves(pool, [Entry(Holder(), move=move)], again=False)


async def blocked_on_a_lock(pool, task) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not task.done() and not await pool.fetchval(waiting):
        await asyncio.sleep(0.01)


async def test_what_came_before_the_wait_wakes_the_run_in_the_same_commit(parent, pool):
    await runs.send_signal(pool, "p", "go", 1, None)
    await go_to_sleep(pool)
    assert await status(pool) == "pending"


async def test_what_came_for_another_wait_or_was_heard_already_wakes_nobody(parent, pool):
    await runs.send_signal(pool, "p", "another", 1, None)
    await runs.send_signal(pool, "p", "go", 1, None)
    await pool.execute("UPDATE signals SET consumed = TRUE WHERE name = 'go'")
    await go_to_sleep(pool)
    assert await status(pool) == "waiting", "else it would come back for ever"


async def test_a_child_that_ended_before_the_wait_wakes_the_run_in_the_same_commit(parent, pool):
    await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'c'")
    await go_to_sleep(pool)
    assert await status(pool) == "pending"


async def test_a_cancellation_before_the_wait_wakes_the_run_in_the_same_commit(parent, pool, nc):
    assert (await control.cancel(pool, nc, "p", "stop"))["way"] == "asked"
    await go_to_sleep(pool)
    assert await status(pool) == "pending"


async def test_a_signal_that_is_sent_again_wakes_nobody(parent, pool):
    await runs.send_signal(pool, "p", "go", 1, "once")
    await pool.execute("UPDATE signals SET consumed = TRUE")
    await go_to_sleep(pool)
    assert (await runs.send_signal(pool, "p", "go", 1, "once"))["sent"] is False
    assert await status(pool) == "waiting"
    await runs.send_signal(pool, "p", "another", 1, "twice")
    assert await status(pool) == "waiting", "nor one that it does not wait for"


async def test_a_cancellation_that_an_earlier_life_heard_of_wakes_this_one(parent, pool, nc):
    await control.cancel(pool, nc, "p", "stop")
    await pool.execute(
        "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, finished_at) "
        "VALUES ('p', 1, '!cancel', 'cancel', 'cancel', '', 'ok', 1, 0, now(), now())"
    )
    await go_to_sleep(pool)
    assert await status(pool) == "waiting", "a run that has heard of it may wait while it tidies up"
    await pool.execute("UPDATE runs SET status = 'running', base_seq = 5")
    await go_to_sleep(pool)
    assert await status(pool) == "pending"


@pytest.mark.parametrize("what", ["signal", "child", "cancel", "pause"])
async def test_what_meets_the_lock_of_a_run_going_to_sleep_finds_it_waiting(parent, pool, nc, what):
    """The statement began before the run waited, and goes on after: its snapshot still shows a running run."""
    if what == "child":
        await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'c'")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(WAITS)
        if what == "signal":
            task = asyncio.create_task(runs.send_signal(pool, "p", "go", 1, None))
        elif what == "child":
            task = asyncio.create_task(runs.tell_parents(pool, nc, ["c"]))
        elif what == "pause":
            task = asyncio.create_task(control.pause(pool, nc, "p"))
        else:
            task = asyncio.create_task(control.cancel(pool, nc, "p", "stop"))
        await blocked_on_a_lock(pool, task)
        await transaction.commit()
    await task
    assert await status(pool) == {"cancel": "cancelled", "pause": "paused"}.get(what, "pending")


async def test_a_run_that_calls_a_run_of_somebody_else_is_woken_by_its_end(parent, pool, nc):
    await pool.execute("UPDATE runs SET parent_run_id = NULL, joined = TRUE WHERE run_id = 'c'")
    await go_to_sleep(pool)
    assert await status(pool) == "waiting"
    await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'c'")
    await runs.tell_parents(pool, nc, ["c"])
    assert await status(pool) == "pending"


async def test_a_child_wakes_a_parent_that_waits_for_it_and_no_other(parent, pool, nc):
    await runs.accept(pool, [runs.new_start("d", "a", 3, parent=("p", "2"))])
    await go_to_sleep(pool)  # for c
    await runs.tell_parents(pool, nc, ["d"])
    assert await status(pool) == "waiting"
    await control.pause(pool, nc, "p")
    await runs.tell_parents(pool, nc, ["c"])
    assert await status(pool) == "paused", "nor one that is paused"


async def test_a_joined_child_cannot_end_between_the_last_look_and_the_wait(parent, pool, nc):
    await pool.execute("UPDATE runs SET parent_run_id = NULL, joined = TRUE WHERE run_id = 'c'")

    async def end_and_tell() -> None:
        await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'c'")
        await runs.tell_parents(pool, nc, ["c"])

    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(WAITS)
        await connection.execute(SQL["lock_joined"], ["c"])
        assert await connection.fetch(SQL["recheck_waits"], ["p"]) == []
        task = asyncio.create_task(end_and_tell())
        await blocked_on_a_lock(pool, task)
        await transaction.commit()
    await task
    assert await status(pool) == "pending"


async def test_an_end_that_nobody_told_is_told_by_the_sweep(parent, pool, nc):
    await go_to_sleep(pool)
    await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'c'")
    await runs.accept(pool, [runs.new_start(run_id, "a", 3) for run_id in ("joined", "nobodys")])
    ended = "UPDATE runs SET status = 'completed', finished_at = now(), joined = run_id = 'joined'"
    await pool.execute(f"{ended} WHERE run_id IN ('joined', 'nobodys')")
    untold = await pool.fetch(SQL["untold_children"], datetime.now(UTC), 10)
    assert sorted(record["run_id"] for record in untold) == ["c", "joined"]
    await runs.tell_parents(pool, nc, ["c", "joined"])
    assert await status(pool) == "pending"
    assert await pool.fetch(SQL["untold_children"], datetime.now(UTC), 10) == []
