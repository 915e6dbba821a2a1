from __future__ import annotations

from datetime import timedelta

import pytest

from tests.agents.queued import INSIDE_TABLE, Queued
from tests.platform import in_process
from tests.queue_support import all_ended, configure
from tests.support import eventually

# The most runs that began within any period, by the database's clock.
BUSIEST = """
SELECT max(began) FROM (
  SELECT count(*) OVER (ORDER BY started_at RANGE BETWEEN CURRENT ROW AND $2::interval FOLLOWING) AS began
  FROM runs WHERE queue_name = $1) AS t
"""


@pytest.fixture(autouse=True)
async def table(pool):
    await pool.execute(INSIDE_TABLE)


async def test_no_more_runs_begin_within_a_period_than_the_rate_says(settings, nc, pool):
    async with in_process(settings, nc, Queued, Queued) as platform:
        await configure(platform, "line", rate_limit=4, rate_period_seconds=0.5)
        for n in range(14):
            await platform.start_run("queued", {"n": n}, queue="line")
        await all_ended(pool, 14)
        assert await pool.fetchval(BUSIEST, "line", timedelta(milliseconds=499)) == 4
        assert await pool.fetchval("SELECT count(*) FROM queue_starts") <= 8, "what is older than the period is dropped"


async def test_a_run_that_goes_on_after_a_wait_needs_no_second_token_and_a_pending_one_says_when_it_may(
    settings, nc, pool
):
    async with in_process(settings, nc, Queued) as platform:
        await configure(platform, "line", rate_limit=1, rate_period_seconds=3600)
        sleeper = await platform.start_run("queued", {}, workflow="nap", queue="line")
        await eventually(lambda: status_is(platform, sleeper, "waiting"))
        second = await platform.start_run("queued", {}, queue="line")
        run = await platform.run(second)
        assert run["reason"]["code"] == "waiting_for_rate"
        assert "1 runs of queue 'line' began within 3600 s; the next one may at 20" in run["reason"]["message"]
        await platform.request("run.signal", {"run_id": sleeper, "name": "go"})
        await eventually(lambda: status_is(platform, sleeper, "completed"))
        assert (await platform.run(second))["status"] == "pending"
        [queue] = (await platform.request("queue.list", {"queue": "line"}))["queues"]
        assert (queue["waits_for"], queue["started"], queue["pending"]) == ("rate", 1, 1)
        await configure(platform, "line", rate_limit=2)
        await eventually(lambda: status_is(platform, second, "completed"))


async def status_is(platform, run_id, status):
    return (await platform.run(run_id))["status"] == status
