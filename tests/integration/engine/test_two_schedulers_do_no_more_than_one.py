from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.store.queries import load_queries
from services.scheduler.service import Scheduler
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.support import eventually

SQL = load_queries("engine.sql")


class Busy(BaseAgent):
    name = "busy"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.sleep("nap", 0.4)
        child = await ctx.call("busy", {}, workflow="child")
        return [child, await ctx.wait_signal("go")]

    @workflow
    async def child(self, ctx: Context, task: dict) -> Any:
        await ctx.sleep(0.4)
        return "child"


@pytest.mark.parametrize("query", ["due_timers", "stale_pending"])
async def test_what_another_scheduler_has_in_its_hands_is_passed_over(pool, query):
    await runs.accept(pool, [runs.new_start(run_id, "busy", 1) for run_id in ("theirs", "mine")])
    if query == "due_timers":
        await pool.execute("UPDATE runs SET status = 'waiting', wake_at = now()")
    said = (datetime.now(UTC) + timedelta(seconds=9), 10) if query == "due_timers" else (0.0, 10, [], [])
    async with pool.acquire() as other, pool.acquire() as connection:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE runs SET status = 'running' WHERE run_id = 'theirs'")
        await connection.execute("SET lock_timeout = '2s'")
        found = await connection.fetch(SQL[query], *said)
        await connection.execute("RESET lock_timeout")
        await transaction.commit()
    assert [record["run_id"] for record in found] == ["mine"]


async def test_timers_wake_ups_and_lost_processes_are_handled_once(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "second"})))
        first, second = [await platform.agent(Busy) for _ in range(2)]
        run_ids = await asyncio.gather(*(platform.start_run("busy", {}) for _ in range(20)))
        await eventually(lambda: len(first.worker.executions) > 3)
        platform.services.remove(first)
        await first.abort()  # both schedulers see it go
        for run_id in run_ids:
            await signal(platform, run_id, "go", run_id)
        for run_id in run_ids:
            run = await until(platform, run_id, "completed", "failed", "dead", timeout=20)
            assert run["output"] == ["child", run_id]
            assert run["attempts"] <= 2
            assert [step["kind"] for step in run["steps"]] == ["sleep", "sleep", "call", "call", "signal"]
        assert second.worker.process_id
        assert await pool.fetchval("SELECT count(*) FROM processes WHERE state = 'lost'") == 1
        assert await pool.fetchval("SELECT count(*) FROM runs") == 40, "no child is started twice"
