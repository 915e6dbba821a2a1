from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.errors import Conflict, PermanentError, RunFailed, StepFailed
from perdure.store.queries import load_queries
from tests.engine_support import at_rest, signal, until
from tests.platform import in_process
from tests.support import eventually

SQL = load_queries("engine.sql")


class Family(BaseAgent):
    name = "family"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        try:
            return await ctx.call("family", task["child"], workflow="child", **task.get("how", {}))
        except (RunFailed, TimeoutError, Conflict) as error:
            if task.get("wait"):
                await ctx.wait_signal("again")
            return [type(error).__name__, getattr(error, "status", None), getattr(error, "run_id", None)]

    @workflow
    async def child(self, ctx: Context, task: Any) -> Any:
        if task == "wait":
            return await ctx.wait_signal("go")
        if task == "fail":
            raise ValueError("the child fails")
        return {"child": task}

    @workflow
    async def race(self, ctx: Context, task: dict) -> str:
        failing = asyncio.Event()

        async def call() -> Any:
            await failing.wait()  # the failure's row is on its way, and nobody has heard of it
            return await ctx.call("family", "wait", workflow="child", run_id=f"{ctx.run_id}-child")

        async def fail() -> None:
            failing.set()
            raise PermanentError("enough")

        try:
            await ctx.gather(call(), ctx.step("fails", fail))
        except StepFailed:
            await ctx.step("after", self.nothing)
        return "done"

    async def nothing(self) -> None:
        return None


@pytest.fixture
async def family(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Family)


async def output(platform, task: dict, **more: Any) -> Any:
    run_id = await platform.start_run("family", task, **more)
    run = await until(platform, run_id, "completed", "failed")
    assert run["status"] == "completed", run["error"]
    return run["output"]


async def test_a_childs_output_failure_and_time_out_reach_its_parent(family):
    platform, _ = family
    assert await output(platform, {"child": 5}) == {"child": 5}
    assert (await output(platform, {"child": "fail"}))[:2] == ["RunFailed", "failed"]
    task = {"child": "wait", "how": {"timeout": 0.05, "run_id": "slow"}}
    assert (await output(platform, task))[0] == "TimeoutError"
    await until(platform, "slow", "cancelled")  # nobody waits for it any more


async def test_a_run_id_that_exists_is_joined_or_refused(family, pool):
    platform, process = family
    await platform.start_run("family", "wait", workflow="child", run_id="shared")
    parents = [await platform.start_run("family", {"child": "wait", "how": {"run_id": "shared"}}) for _ in range(3)]
    for parent in parents:
        await until(platform, parent, "waiting")
    assert (await output(platform, {"child": "other", "how": {"run_id": "shared"}}))[0] == "Conflict"
    await platform.request("run.cancel", {"run_id": parents[2]})
    await at_rest(process)
    await signal(platform, "shared", "go", 7)
    for parent in parents[:2]:
        assert (await until(platform, parent, "completed"))["output"] == 7
    assert (await until(platform, "shared", "completed"))["output"] == 7, "one parent's end is not its end"
    assert await output(platform, {"child": "wait", "how": {"run_id": "shared"}}) == 7, "it has ended: at once"


async def test_cancelling_a_parent_cancels_its_children_in_memory_and_at_rest(family):
    platform, process = family
    for linger in (0, 30):
        process.worker.linger = linger
        child, run_id = f"child-{linger}", f"parent-{linger}"
        await platform.start_run("family", {"child": "wait", "how": {"run_id": child}}, run_id=run_id)

        async def waits(child=child, linger=linger) -> bool:
            status = (await platform.run(child))["status"]
            return status == ("waiting" if not linger else "running")

        await eventually(lambda child=child: exists(platform, child))
        await eventually(waits)
        await platform.request("run.cancel", {"run_id": run_id, "reason": "enough"})
        run = await until(platform, run_id, "cancelled", "failed", "completed")
        assert (run["status"], run["error"]["message"]) == ("cancelled", "enough")
        assert "was cancelled" in (await until(platform, child, "cancelled"))["error"]["message"]


async def exists(platform, run_id: str) -> bool:
    return any(run["run_id"] == run_id for run in (await platform.request("run.list", {}))["runs"])


async def test_children_that_a_cancellation_did_not_reach_are_found_by_the_sweep(family, pool, nc, settings):
    platform, process = family
    await platform.start_run("family", {"child": "wait", "how": {"run_id": "left"}}, run_id="gone")
    await until(platform, "gone", "waiting")
    await until(platform, "left", "waiting")
    await at_rest(process)
    # Whoever cancelled the parent died before it came to the child.
    ended = "UPDATE runs SET status = 'cancelled', finished_at = now() - interval '1 hour', epoch = epoch + 1"
    await pool.execute(f"{ended} WHERE run_id = 'gone'")
    await until(platform, "left", "cancelled")


async def test_the_sweep_asks_living_children_of_cancelled_parents_once_and_nobody_else(pool):
    starts = [runs.new_start(run_id, "family", 1) for run_id in ("gone", "failed")]
    starts += [
        runs.new_start(run_id, "family", 1, parent=("gone", "1")) for run_id in ("left", "joined", "asked", "over")
    ]
    await runs.accept(pool, [*starts, runs.new_start("other", "family", 1, parent=("failed", "1"))])
    await pool.execute("UPDATE runs SET status = 'cancelled', finished_at = now() WHERE run_id IN ('gone', 'over')")
    await pool.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE run_id = 'failed'")
    await pool.execute("UPDATE runs SET joined = TRUE WHERE run_id = 'joined'")
    await pool.execute("UPDATE runs SET cancel_reason = 'enough' WHERE run_id = 'asked'")
    found = await pool.fetch(SQL["abandoned_children"], datetime.now(UTC) + timedelta(seconds=1), 10)
    assert [record["run_id"] for record in found] == ["left"]


@pytest.mark.in_memory
async def test_a_child_on_its_way_when_its_branch_is_cancelled_is_cancelled_too(family):
    platform, _ = family
    run_ids = [await platform.start_run("family", {}, workflow="race") for _ in range(5)]
    for run_id in run_ids:
        assert (await until(platform, run_id, "completed"))["output"] == "done"

        await until(platform, f"{run_id}-child", "cancelled")


async def test_a_parent_that_leaves_memory_leaves_its_children_alone(family):
    platform, process = family
    await platform.start_run("family", {"child": "wait", "how": {"run_id": "kept"}}, run_id="leaving")
    process.worker.linger = 30.0
    await eventually(lambda: "kept" in process.worker.executions)
    process.worker.executions["leaving"].close()
    await asyncio.sleep(0)
    await platform.agent(Family)
    await platform.services.pop(-2).stop()  # the first replica drains; the second takes over
    await signal(platform, "kept", "go", "home")
    assert (await until(platform, "leaving", "completed"))["output"] == "home"
