from __future__ import annotations

import asyncio
from typing import Any

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from services.scheduler.service import Scheduler
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.support import eventually


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
