from __future__ import annotations

from typing import Any

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.engine_support import at_rest, signal, until
from tests.platform import in_process
from tests.support import eventually


class Waiting(BaseAgent):
    name = "waiting"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.sleep("long enough to leave", 0.6)
        said = await ctx.wait_signal("go", timeout=3600)
        child = await ctx.call("waiting", {}, workflow="child")
        return [said, child]

    @workflow
    async def child(self, ctx: Context, task: dict) -> Any:
        return await ctx.wait_signal("end")


async def test_a_sleep_a_signal_and_a_child_hold_no_memory_and_wake(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Waiting)
        run_id = await platform.start_run("waiting", {})
        run = await until(platform, run_id, "waiting")
        await at_rest(process)
        assert run["wake_at"]
        await until(platform, run_id, "waiting", timeout=5)

        async def waits_for_the_signal() -> bool:
            return (await platform.run(run_id))["waiting_for"] == ["go"]

        await eventually(waits_for_the_signal)
        await at_rest(process)
        assert (await platform.run(run_id))["wake_at"], "the time-out of the wait"
        await signal(platform, run_id, "go", 1)

        async def waits_for_the_child() -> list[str]:
            run = await platform.run(run_id)
            return run["waiting_children"] if run["status"] == "waiting" else []

        (child,) = await eventually(waits_for_the_child)
        await until(platform, child, "waiting")
        await at_rest(process)
        assert process.worker._mailbox._signals == process.worker._mailbox._children == {}
        await signal(platform, child, "end", 2)
        assert (await until(platform, run_id, "completed"))["output"] == [1, 2]
        assert await pool.fetchval("SELECT attempts FROM runs WHERE run_id = $1", run_id) == 1
