from __future__ import annotations

import pytest

from perdure.engine import runs
from perdure.engine.clock import SystemClock
from perdure.engine.start_options import StartOptions
from perdure.store.queries import load_queries
from services.scheduler.queues import Queues
from tests.agents.queued import INSIDE_TABLE, Other, Queued
from tests.engine_support import until
from tests.platform import in_process
from tests.queue_support import all_ended, configure, open_gate, running
from tests.support import eventually

SQL = load_queries("queues.sql")
WAITING = """
SELECT count(*) = 2 FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FROM queues WHERE queue_name%'
"""


@pytest.fixture(autouse=True)
async def table(pool):
    await pool.execute(INSIDE_TABLE)


async def test_a_lost_process_gives_its_places_back(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=2)
        held = [await platform.start_run("queued", {"gate": "open"}, queue="line") for _ in range(4)]
        await running(pool, 2)
        process = platform.services.pop()
        await platform.agent(Queued)
        await process.abort()
        await open_gate(pool)
        await all_ended(pool, len(held))
        assert await pool.fetchval("SELECT max(running) FROM inside") == 2


async def test_a_draining_process_gives_its_places_back(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        first = await platform.agent(Queued, drain_timeout=0.2)
        await configure(platform, "line", concurrency=1)
        for _ in range(2):
            await platform.start_run("queued", {"gate": "open"}, queue="line")
        await running(pool, 1)
        platform.services.remove(first)
        await platform.agent(Queued)
        await first.stop()
        await open_gate(pool)
        await all_ended(pool, 2)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 1


async def test_a_cancelled_run_and_one_that_is_resumed_keep_to_the_places(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", concurrency=1)
        first = await platform.start_run("queued", {"gate": "open"}, queue="line")
        await until(platform, first, "running")
        second, third = [await platform.start_run("queued", {"gate": "open"}, queue="line") for _ in range(2)]
        await platform.request("run.cancel", {"run_id": second})
        assert (await platform.run(second))["status"] == "cancelled"
        await platform.request("run.cancel", {"run_id": first})
        await until(platform, first, "cancelled")
        await until(platform, third, "running")
        await open_gate(pool)
        await until(platform, third, "completed")


async def test_a_place_that_no_wake_up_told_of_is_found(settings, nc, pool):
    """The queue's row is all there is: the wake-ups of these runs were lost."""
    async with in_process(settings, nc, Queued, Other) as platform:
        await platform.services[1].stop()
        await configure(platform, "line", concurrency=0)
        line = StartOptions("line")
        await runs.accept(
            pool, [runs.new_start(f"r{n}", ("queued", "other")[n % 2], {}, options=line) for n in range(4)]
        )
        looker = Queues(pool, nc, SystemClock())
        assert await looker.look() == 0
        await configure(platform, "line", concurrency=4)
        assert await looker.look() == 2, "one process of each agent"
        await all_ended(pool, 4)
        assert await looker.look() == 0


async def test_a_claim_counts_after_it_has_locked_the_queue(settings, nc, pool):
    """Two claims at once: the second sees what the first has taken, not what stood when it began."""
    async with in_process(settings, nc, Queued, Queued) as platform:
        await configure(platform, "line", concurrency=1)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(SQL["lock_queue"], "line")
            for n in range(16):
                await platform.start_run("queued", {"gate": "open"}, queue="line", run_id=f"r{n}")
            await eventually(lambda: pool.fetchval(WAITING), message="two processes wait for the queue")
        await running(pool, 1)
        await open_gate(pool)
        await all_ended(pool, 16)
        assert await pool.fetchval("SELECT max(running) FROM inside") == 1


async def test_a_restarted_run_stands_in_the_queue_of_the_first(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        first = await platform.start_run("queued", {}, queue="line", priority=4, fair_key="k")
        await until(platform, first, "completed")
        await configure(platform, "line", concurrency=0)
        again = (await platform.request("run.restart", {"run_id": first}))["run_id"]
        run = await platform.run(again)
        assert (run["status"], run["queue"], run["priority"], run["fair_key"]) == ("pending", "line", 4, "k")
