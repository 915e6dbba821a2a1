from __future__ import annotations

import pytest

from perdure.engine import runs
from perdure.engine.start_options import StartOptions
from tests.agents.queued import INSIDE_TABLE, Other, Queued
from tests.engine_support import until
from tests.platform import in_process
from tests.queue_support import all_ended, configure, open_gate, order

MANY = 3000


@pytest.fixture(autouse=True)
async def table(pool):
    await pool.execute(INSIDE_TABLE)


async def test_a_higher_priority_begins_first_whenever_it_came(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=0)
        said = {"low": -5, "a": 0, "b": 0, "urgent": 9, "c": 0, "soon": 3, "most-urgent": 10}
        for run_id, priority in said.items():
            await platform.start_run("queued", {}, queue="line", run_id=run_id, priority=priority)
        await configure(platform, "line", concurrency=1)
        await all_ended(pool, len(said))
        assert await order(pool) == ["most-urgent", "urgent", "soon", "a", "b", "c", "low"]


async def test_agents_that_share_a_queue_share_its_order(settings, nc, pool):
    async with in_process(settings, nc, Queued, Other) as platform:
        await configure(platform, "line", concurrency=0)
        for n in range(6):
            await platform.start_run(("queued", "other")[n % 2], {}, queue="line", run_id=f"r{n}", priority=-n)
        await platform.start_run("nobody", {}, queue="line", priority=100)  # has no process: it holds nobody up
        await configure(platform, "line", concurrency=1)
        await all_ended(pool, 6)
        assert await order(pool) == [f"r{n}" for n in range(6)]


async def test_one_tenants_thousands_of_runs_do_not_delay_anothers_one(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=0)
        crowd = StartOptions("line", fair_key="crowd")
        for part in range(0, MANY, 500):
            await runs.accept(pool, [runs.new_start(f"c{part + n}", "queued", {}, options=crowd) for n in range(500)])
        for n in range(3):
            await platform.start_run("queued", {}, queue="line", run_id=f"one{n}", fair_key="one")
        await platform.start_run("queued", {}, queue="line", run_id="keyless")
        await configure(platform, "line", concurrency=1)
        for run_id in ("one0", "one1", "one2", "keyless"):
            await until(platform, run_id, "completed")
        first = (await order(pool))[:10]
        assert first[:3] == ["c0", "one0", "keyless"]
        assert [run_id for run_id in first if not run_id.startswith("c")] == ["one0", "keyless", "one1", "one2"]
        assert first.index("one2") <= 6, "keys take turns"
        await configure(platform, "line", concurrency=0)


async def test_a_tenant_that_comes_late_begins_where_the_queue_stands(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=0)
        for n in range(6):
            await platform.start_run("queued", {"gate": f"g{n}"}, queue="line", run_id=f"c{n}", fair_key="crowd")
        await configure(platform, "line", concurrency=1)
        for n in range(3):
            await until(platform, f"c{n}", "running")
            await open_gate(pool, f"g{n}")
        await until(platform, "c3", "running")
        await platform.start_run("queued", {}, queue="line", run_id="late", fair_key="late")
        for n in range(3, 6):
            await open_gate(pool, f"g{n}")
        await all_ended(pool, 7)
        assert (await order(pool)).index("late") in (4, 5), "behind one of the crowd at most"


async def test_a_priority_without_a_queue_counts_in_the_queue_of_the_agent(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "queued", concurrency=0)
        for run_id, priority in {"a": 0, "b": 5}.items():
            await platform.start_run("queued", {}, run_id=run_id, priority=priority)
        await configure(platform, "queued", concurrency=1)
        await all_ended(pool, 2)
        assert await order(pool) == ["b", "a"]
