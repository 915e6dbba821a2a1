"""The scheduler sleeps until the first timer is due, and is told of those that are due before its next look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, StepContext, workflow
from perdure.engine.entries import Entry
from perdure.engine.journal import Journal
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually


class Sleeper(BaseAgent):
    name = "sleeper"

    @workflow
    async def run(self, ctx: Context, task: Any) -> float:
        await ctx.sleep("nap", task["seconds"])
        return 1.0


async def test_a_timer_that_is_due_before_the_schedulers_next_look_is_told(settings, nc, monkeypatch):
    monkeypatch.setattr("services.scheduler.sweeper.TIMER_SOON", 3600.0)  # it looks when it is told, or never
    async with in_process(settings, nc, Sleeper) as platform:
        run_id = await platform.start_run("sleeper", {"seconds": 0.45})  # past the time that a run lingers in memory
        assert (await until(platform, run_id, "completed"))["output"] == 1.0


async def test_a_timer_that_is_due_later_is_found_by_looking(settings, nc, monkeypatch):
    monkeypatch.setattr("perdure.engine.worker.TIMER_SOON", 0.0)  # nobody tells
    async with in_process(settings, nc, Sleeper) as platform:
        run_id = await platform.start_run("sleeper", {"seconds": 1.0})
        assert (await until(platform, run_id, "completed"))["output"] == 1.0


class Flaky(BaseAgent):
    name = "flaky"

    @workflow
    async def run(self, ctx: Context, task: float) -> int:
        return await ctx.step("try", self.attempt, retry=Retry(max_attempts=2, delay=task, jitter=False))

    async def attempt(self, step: StepContext) -> int:
        tried.append(step.attempt)
        if step.attempt == 1:
            raise OSError("not yet")
        return step.attempt


tried: list[int] = []


async def test_a_timer_that_fires_while_its_run_leaves_memory_begins_nothing(settings, nc, monkeypatch):
    held: list[tuple[Journal, Entry]] = []
    add = Journal.add

    def slow(journal: Journal, entry: Entry) -> None:
        if entry.move is not None and entry.move.status == "waiting":
            held.append((journal, entry))
        else:
            add(journal, entry)

    monkeypatch.setattr(Journal, "add", slow)
    async with in_process(settings, nc, Flaky) as platform:
        platform.services[-1].worker.linger = 0.0
        for delay in (0.3, 1.0, 3.0, 10.0):  # on a slow machine the next try is due before the run leaves memory
            tried.clear()
            run_id = await platform.start_run("flaky", delay)
            await eventually(lambda: held or len(tried) == 2, timeout=30)
            if held:
                break
        _, waits = held[0]
        await eventually(lambda: datetime.now(UTC) > waits.move.wake_at + timedelta(seconds=0.1), timeout=30)
        monkeypatch.setattr(Journal, "add", add)
        add(*held[0])
        assert (await until(platform, run_id, "completed"))["output"] == 2
    assert tried == [1, 2]
