from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.store.queries import load_queries
from tests.agents.queued import INSIDE_TABLE, Other, Queued
from tests.engine_support import until
from tests.platform import in_process
from tests.queue_support import all_ended, configure, open_gate, order, running
from tests.support import eventually


@pytest.fixture(autouse=True)
async def table(pool):
    await pool.execute(INSIDE_TABLE)


async def test_a_queue_never_executes_more_than_its_limit_over_all_replicas_and_agents(settings, nc, pool):
    async with in_process(settings, nc, Queued, Queued, Other) as platform:
        await configure(platform, "line", concurrency=3)
        for n in range(30):
            await platform.start_run("other" if n % 3 else "queued", {"n": n}, queue="line")
        await all_ended(pool, 30)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 3


async def test_a_process_executes_no_more_of_a_queue_than_its_own_limit(settings, nc, pool):
    async with in_process(settings, nc, Queued, Queued) as platform:
        await configure(platform, "line", process_concurrency=2)
        for n in range(12):
            await platform.start_run("queued", {"gate": "open"}, queue="line", run_id=f"r{n}")
        await running(pool, 4)
        await open_gate(pool)
        await all_ended(pool, 12)
        assert await pool.fetchval("SELECT max(here) FROM inside") == 2
        assert await pool.fetchval("SELECT max(running) FROM inside") == 4


async def test_runs_without_a_queue_stand_in_the_one_of_their_agent_once_it_has_limits(settings, nc, pool):
    async with in_process(settings, nc, Queued, Queued) as platform:
        before = [await platform.start_run("queued", {"gate": "open"}) for _ in range(3)]
        for run_id in before:
            await until(platform, run_id, "running")
        await configure(platform, "queued", concurrency=2)
        after = [await platform.start_run("queued", {"gate": "open"}) for _ in range(4)]
        for run_id in after:
            await eventually(lambda run_id=run_id: queue_of(platform, run_id))
        held = await pool.fetch("SELECT run_id FROM runs WHERE queue_name = 'queued' AND status = 'running'")
        assert sorted(row["run_id"] for row in held) == sorted(before), "those that ran before count"
        await open_gate(pool)
        await all_ended(pool, 7)
        assert await pool.fetchval("SELECT max(running) FROM inside WHERE run_id = ANY($1)", after) == 2


async def queue_of(platform, run_id):
    return (await platform.run(run_id))["queue"] == "queued"


async def test_a_limit_of_all_queues_holds_for_each_of_them(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "*", concurrency=1)
        for n in range(6):
            await platform.start_run("queued", {"gate": "open"}, queue="ab"[n % 2], run_id=f"r{n}")
        await running(pool, 1, queue="a")
        await running(pool, 1, queue="b")
        await open_gate(pool)
        await all_ended(pool, 6)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 1
        assert sorted(await order(pool)) == [f"r{n}" for n in range(6)]


async def test_a_run_that_waits_has_given_its_place_up(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=1)
        sleeper = await platform.start_run("queued", {}, workflow="nap", queue="line")
        await until(platform, sleeper, "waiting")
        second = await platform.start_run("queued", {"gate": "open"}, queue="line")
        await until(platform, second, "running")
        await platform.request("run.signal", {"run_id": sleeper, "name": "go"})
        run = await until(platform, sleeper, "pending")
        assert run["reason"]["code"] == "waiting_for_place", "it goes on when there is a place again"
        await open_gate(pool)
        await all_ended(pool, 2)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 1


async def test_a_limit_changes_with_the_next_claim(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=0)
        for n in range(9):
            await platform.start_run("queued", {"gate": "open"}, queue="line", run_id=f"r{n}")
        held = (await platform.run("r0"))["reason"]
        assert held == {"code": "waiting_for_place", "message": "queue 'line' is held: its queue_concurrency is 0"}
        for limit in (2, 5):
            await configure(platform, "line", concurrency=limit)
            await running(pool, limit)
        await configure(platform, "line", concurrency=1)
        await open_gate(pool)
        await all_ended(pool, 9)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 5
        late = "SELECT max(running) FROM inside WHERE run_id IN ('r6', 'r7', 'r8')"
        assert await pool.fetchval(late) <= 2, "a place that was not free any more is not given again"


@pytest.mark.parametrize("bad", ["many", "-1", "1.5", "", "1000001"])
async def test_a_bad_limit_is_held_and_shown(settings, nc, pool, bad):
    async with in_process(settings, nc) as platform:
        await configure(platform, "line", concurrency=2)
        write = "UPDATE agent_configurations SET config_value = $1 WHERE agent_name = 'line'"
        await pool.execute(write, bad)
        [queue] = (await platform.request("queue.list", {"queue": "line"}))["queues"]
        assert queue["concurrency"] == 2
        assert "queue_concurrency" in queue["held"]
        await pool.execute(write, " 7 ")
        [queue] = (await platform.request("queue.list", {}))["queues"]
        assert (queue["concurrency"], queue["held"]) == (7, {})
        await pool.execute("UPDATE agent_configurations SET is_active = false")
        [queue] = (await platform.request("queue.list", {}))["queues"]
        assert queue["concurrency"] is None


async def test_two_claims_of_one_queue_at_once_take_turns(pool):
    """The second counts what the first has taken, though the first was not committed when the second began."""
    await pool.execute(
        "INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until,"
        " workflows, versions) SELECT p, 'a', p, 1, now(), now() + interval '1 hour', '{run}', '{\"\"}'"
        " FROM unnest('{p,q}'::text[]) AS p"
    )
    await pool.execute("INSERT INTO queues (queue_name, concurrency) VALUES ('narrow', 1)")
    await pool.execute(
        "INSERT INTO runs (run_id, agent_name, task, task_hash, queue_name, fair_key)"
        " SELECT 'r' || n, 'a', '1', 'h', 'narrow', '' FROM generate_series(1, 3) AS n"
    )
    sql = load_queries("queues.sql")

    async def claim(connection: Any, process: str) -> list[str]:
        await connection.execute(sql["lock_queue"], "narrow")
        said = (process, "narrow", "a", 10, "h", 0, ["run"], [""], ["x"], [True], False)
        return [record["run_id"] for record in await connection.fetch(sql["claim_queued"], *said)]

    async def second() -> list[str]:
        async with pool.acquire() as connection, connection.transaction():
            return await claim(connection, "q")

    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def decided() -> bool:
        return later.done() or bool(await pool.fetchval(waits))

    async with pool.acquire() as first, first.transaction():
        assert await claim(first, "p") == ["r1"]
        await pool.execute(
            "INSERT INTO runs (run_id, agent_name, task, task_hash, queue_name, fair_key, priority)"
            " VALUES ('urgent', 'a', '1', 'h', 'narrow', '', 5)"
        )
        later = asyncio.create_task(second())
        await eventually(decided)
    assert await later == []
