"""The scheduler sleeps until the first timer is due, and is told of those that are due before its next look."""

from __future__ import annotations

from typing import Any

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.engine_support import until
from tests.platform import in_process


class Sleeper(BaseAgent):
    name = "sleeper"

    @workflow
    async def run(self, ctx: Context, task: Any) -> float:
        await ctx.sleep("nap", task["seconds"])
        return 1.0


async def test_a_timer_that_is_due_before_the_schedulers_next_look_is_told(settings, nc, monkeypatch):
    monkeypatch.setattr("services.scheduler.sweeper.TIMER_SOON", 3600.0)  # it looks when it is told, or never
    async with in_process(settings, nc, Sleeper) as platform:
        run_id = await platform.start_run("sleeper", {"seconds": 0.55})  # past the time that a run lingers in memory
        assert (await until(platform, run_id, "completed"))["output"] == 1.0


async def test_a_timer_that_is_due_later_is_found_by_looking(settings, nc, monkeypatch):
    monkeypatch.setattr("perdure.engine.worker.TIMER_SOON", 0.0)  # nobody tells
    async with in_process(settings, nc, Sleeper) as platform:
        run_id = await platform.start_run("sleeper", {"seconds": 1.0})
        assert (await until(platform, run_id, "completed"))["output"] == 1.0
