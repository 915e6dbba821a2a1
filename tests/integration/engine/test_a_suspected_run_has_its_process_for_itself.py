"""A run that two processes were lost with is executed while no other run is here, and keeps nobody waiting for long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, claims, runs, worker, workflow
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually


class Mixed(BaseAgent):
    name = "mixed"
    running: list[str]
    gate: asyncio.Event
    last: asyncio.Event

    @workflow
    async def run(self, ctx: Context, task: dict) -> str:
        for number in range(task.get("steps", 1)):
            await ctx.step(f"s{number}", self.work, ctx.run_id, task.get("waits_for"))
        return "done"

    async def work(self, run_id: str, waits_for: str | None) -> None:
        self.running.append(run_id)
        if waits_for is None:
            await asyncio.sleep(0.01)
        else:
            await getattr(self, waits_for).wait()


@pytest.fixture
async def mixed(settings, nc):
    Mixed.running, Mixed.gate, Mixed.last = [], asyncio.Event(), asyncio.Event()
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Mixed)


async def suspect(process: Any, run_id: str, task: Any) -> None:
    """A run whose process was lost twice, without a row in between."""
    pool = process.worker.pool
    await runs.accept(pool, [runs.new_start(run_id, "mixed", task)])
    await pool.execute("UPDATE runs SET attempts = 2 WHERE run_id = $1", run_id)
    runs.wake(process.worker.nats, run_id, "mixed")


async def row(process: Any, run_id: str) -> dict[str, Any]:
    return dict(await process.worker.pool.fetchrow("SELECT status, attempts FROM runs WHERE run_id = $1", run_id))


async def test_its_neighbours_are_given_back_uncounted_and_go_on_when_it_has_written_a_row(mixed):
    platform, process = mixed
    await platform.start_run("mixed", {"steps": 100}, run_id="neighbour")
    await eventually(lambda: len(Mixed.running) > 2)
    await suspect(process, "suspect", {"waits_for": "gate"})
    await eventually(lambda: "suspect" in Mixed.running)
    began = len(Mixed.running)
    assert set(process.worker.executions) == {"suspect"}
    assert await row(process, "neighbour") == {"status": "pending", "attempts": 0}
    assert await row(process, "suspect") == {"status": "running", "attempts": 3}
    assert len(Mixed.running) == began, "nobody begins a step beside it"
    assert process.worker.slots == 0, "and nobody is asked for"
    Mixed.gate.set()
    for run_id in ("suspect", "neighbour"):
        assert (await until(platform, run_id, "completed"))["output"] == "done"


async def test_a_step_that_lasts_is_not_broken_off_and_puts_it_off_for_a_moment_only(mixed, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.05)
    platform, process = mixed
    await platform.start_run("mixed", {"waits_for": "last", "steps": 2}, run_id="lasting")
    await eventually(lambda: Mixed.running == ["lasting"])
    await suspect(process, "suspect", {"waits_for": "gate"})
    await eventually(lambda: Mixed.running == ["lasting", "suspect"])
    assert await row(process, "lasting") == {"status": "running", "attempts": 1}
    Mixed.last.set()

    async def its_next_step_waits() -> bool:
        rows = await process.worker.pool.fetchval("SELECT count(*) FROM journal WHERE run_id = 'lasting'")
        execution = process.worker.executions["lasting"]
        return rows == 1 and execution.busy == 1 and not process.worker.may_start(execution)

    await eventually(its_next_step_waits)
    assert Mixed.running == ["lasting", "suspect"]
    Mixed.gate.set()
    for run_id in ("suspect", "lasting"):
        assert (await until(platform, run_id, "completed"))["output"] == "done"
    assert Mixed.running == ["lasting", "suspect", "lasting"]


async def test_one_that_goes_on_for_long_lets_the_others_in(mixed, monkeypatch):
    monkeypatch.setattr(claims, "ALONE", 0.05)
    monkeypatch.setattr(claims, "OTHERS", 0.2)
    monkeypatch.setattr(claims, "AUDIT_EVERY", 0.2)
    monkeypatch.setattr(worker, "PATIENCE", 0.05)
    platform, process = mixed
    for run_id in ("one", "two"):
        await suspect(process, run_id, {"waits_for": "gate"})
    await eventually(lambda: Mixed.running)
    await platform.start_run("mixed", {}, run_id="new")
    assert (await until(platform, "new", "completed"))["output"] == "done"
    await eventually(lambda: set(Mixed.running) >= {"one", "two"}, message="the other one has its turn, too")
    Mixed.gate.set()
    for run_id in ("one", "two"):
        assert (await until(platform, run_id, "completed"))["output"] == "done"
