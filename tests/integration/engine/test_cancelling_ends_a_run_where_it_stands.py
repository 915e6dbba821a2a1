from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from perdure.engine.calls import CancelCall
from perdure.engine.execution import Execution
from tests.engine_support import lose, losing, until
from tests.platform import in_process
from tests.support import eventually


class Stubborn(BaseAgent):
    name = "stubborn"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.stopped: list[str] = []
        self.release = threading.Event()
        self.tidying = asyncio.Event()
        self.tidied = asyncio.Event()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        return await getattr(self, task["what"])(ctx)

    async def in_step(self, ctx: Context) -> None:
        await ctx.step("long", self.long)

    async def in_branch(self, ctx: Context) -> None:
        async def branch() -> None:
            await ctx.step("long", self.long)

        await ctx.gather(branch(), ctx.step("also long", self.long))

    async def in_thread(self, ctx: Context) -> None:
        await ctx.step("thread", lambda: self.release.wait(20))

    async def outside(self, ctx: Context) -> None:
        await asyncio.Event().wait()  # no ctx call: nothing of the engine's could wake it

    async def waiting(self, ctx: Context) -> None:
        await ctx.wait_signal("never")

    async def tidy(self, ctx: Context) -> None:
        try:
            await ctx.step("book", self.long)
        except asyncio.CancelledError:
            await ctx.step("unbook", self.unbook)
            raise

    async def tidy_slowly(self, ctx: Context) -> None:
        try:
            await ctx.wait_signal("never")
        except asyncio.CancelledError:
            await ctx.wait_signal("tidied")
            raise

    async def tidy_in_branches(self, ctx: Context) -> None:
        async def inner(name: str) -> None:
            try:
                await ctx.step("book", self.long)
            except asyncio.CancelledError:
                await ctx.step(f"unbook {name}", self.unbook)
                raise

        async def outer() -> None:
            try:
                await ctx.gather(inner("a"), inner("b"))
            except asyncio.CancelledError:
                await ctx.step("after the inner", self.unbook)
                raise

        try:
            await ctx.gather(outer(), ctx.step("book", self.long))
        except asyncio.CancelledError:
            await ctx.step("after the outer", self.unbook)
            raise

    async def hangs_after(self, ctx: Context) -> None:
        await ctx.step("first", self.quick)
        self.tidying.set()
        await asyncio.Event().wait()

    async def quick(self) -> None:
        return

    async def carries_on(self, ctx: Context) -> str:
        try:
            await ctx.sleep(3600)
        except asyncio.CancelledError:
            return "it was cancelled, and has a result all the same"
        return "slept"

    async def long(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped.append("long")
            raise

    async def unbook(self) -> str:
        self.tidying.set()
        await self.tidied.wait()
        return "unbooked"


@pytest.fixture
async def stubborn(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Stubborn)


STEPS = {"in_step": 1, "in_branch": 2, "in_thread": 1, "tidy": 1}  # under way before there is anything to cancel


async def start(platform, process, what: str) -> str:
    run_id = await platform.start_run("stubborn", {"what": what})
    await eventually(lambda: run_id in process.worker.executions)
    if what in STEPS:
        await eventually(lambda: process.worker.steps_running == STEPS[what])
    return run_id


@pytest.mark.parametrize("what", ["in_step", "in_branch", "in_thread", "outside", "waiting"])
async def test_a_running_run_ends_cancelled_though_its_code_does_not_give_way(stubborn, what):
    platform, process = stubborn
    assert process.worker.cancel_grace == 1.5, "so that it has ended within two seconds"
    process.worker.cancel_grace = 0.1
    run_id = await start(platform, process, what)
    try:
        await platform.request("run.cancel", {"run_id": run_id, "reason": "enough"})
        run = await until(platform, run_id, "cancelled")
    finally:
        process.agent.release.set()
    assert run["error"] == {"type": "Cancelled", "message": "enough"}
    if what in ("in_step", "in_branch"):
        assert set(process.agent.stopped) == {"long"}
    await eventually(lambda: not process.worker.executions)


async def test_what_a_run_tidies_up_is_journaled_and_may_take_its_time(stubborn, monkeypatch):
    platform, process = stubborn
    process.worker.cancel_grace = 0.05
    looks, by_force = [], Execution._cancel_by_force

    def look(execution: Execution, left: int) -> None:
        by_force(execution, left)
        looks.append(left)

    monkeypatch.setattr(Execution, "_cancel_by_force", look)
    run_id = await start(platform, process, "tidy")
    await platform.request("run.cancel", {"run_id": run_id})
    await eventually(process.agent.tidying.is_set)
    await eventually(lambda: len(looks) > 1, message="the grace of code that does not give way is over, and once more")
    execution = process.worker.executions[run_id]
    process.agent.tidying.clear()
    await lose(process, execution)  # and it goes on elsewhere
    await eventually(process.agent.tidying.is_set)
    process.agent.tidied.set()
    run = await until(platform, run_id, "cancelled")
    assert [step["name"] for step in run["steps"]] == ["cancel", "unbook"]


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_branches_tidy_up_before_what_waits_for_them_does(stubborn, often):
    platform, process = stubborn
    run_id = await start(platform, process, "tidy_in_branches")
    await eventually(lambda: process.worker.steps_running == 3)
    with losing(process) if often != "straight" else contextlib.nullcontext():
        if often != "straight":
            process.agent.tidied.set()
        await platform.request("run.cancel", {"run_id": run_id})
        if often == "straight":
            await eventually(process.agent.tidying.is_set)
            await eventually(lambda: process.worker.steps_running == 2, message="the inner branches alone tidy up")
            process.agent.tidied.set()
        run = await until(platform, run_id, "cancelled", "blocked", timeout=20)
    names = [step["name"] for step in run["steps"]]
    assert sorted(names[1:3]) == ["unbook a", "unbook b"]
    assert [names[0], *names[3:]] == ["cancel", "after the inner", "after the outer"], run["error"]


async def test_code_that_gives_no_way_ends_also_where_the_cancellation_is_in_the_journal(stubborn):
    """The process was lost after the cancellation was journaled: the replay hangs at the same place."""
    platform, process = stubborn
    process.worker.cancel_grace = 0.1
    run_id = await start(platform, process, "hangs_after")
    await eventually(process.agent.tidying.is_set)
    execution = process.worker.executions[run_id]
    process.agent.tidying.clear()
    row = CancelCall(execution).row("ok")
    await platform.services[1].pool.execute("UPDATE runs SET cancel_reason = 'enough' WHERE run_id = $1", run_id)
    execution.cancel_reason = "enough"
    execution.write(row)
    await eventually(lambda: process.worker.journal.idle)
    await lose(process, execution)
    assert (await until(platform, run_id, "cancelled", timeout=5))["error"]["message"] == "enough"


@pytest.mark.in_memory
async def test_a_run_that_tidies_up_may_wait_and_leaves_memory_meanwhile(stubborn):
    platform, process = stubborn
    process.worker.linger = 30.0
    run_id = await start(platform, process, "tidy_slowly")
    await platform.request("run.cancel", {"run_id": run_id})
    execution = process.worker.executions[run_id]
    await eventually(lambda: any(call.signal == "tidied" for call in execution.pending.values()))
    process.worker.linger = 0.0
    await lose(process, execution)
    run = await until(platform, run_id, "waiting")
    assert run["waiting_for"] == ["tidied"]
    assert (await platform.run(run_id))["epoch"] == run["epoch"], "the cancellation does not wake it again and again"
    await platform.request("run.signal", {"run_id": run_id, "name": "tidied", "payload": None})
    assert (await until(platform, run_id, "cancelled", "completed", "failed"))["status"] == "cancelled"


async def test_a_run_may_answer_a_cancellation_with_a_result(stubborn):
    platform, process = stubborn
    process.worker.linger = 30.0
    run_id = await start(platform, process, "carries_on")
    await platform.request("run.cancel", {"run_id": run_id})
    assert "all the same" in (await until(platform, run_id, "completed"))["output"]


async def test_runs_that_nobody_holds_end_at_once_and_ended_ones_stay(stubborn):
    platform, process = stubborn
    pending = await platform.start_run("nobody", {})
    assert (await platform.request("run.cancel", {"run_id": pending}))["status"] == "cancelled"
    waiting = await start(platform, process, "waiting")
    await until(platform, waiting, "waiting")
    assert (await platform.request("run.cancel", {"run_id": waiting}))["status"] == "cancelled"
    again = await platform.request("run.cancel", {"run_id": waiting, "reason": "twice"})
    assert again["error"]["message"] != "twice"
