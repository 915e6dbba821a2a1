"""A run takes the version of its workflow at its first claim, and only code that offers this version takes it up."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.support import eventually


async def echo(value: Any) -> Any:
    return value


class First(BaseAgent):
    name = "versioned"

    @workflow(version="1")
    async def run(self, ctx: Context, task: Any) -> str:
        await ctx.step("one", echo, 1)
        await ctx.wait_signal("go")
        if isinstance(task, dict) and task.pop("again", False):
            ctx.continue_as_new({})
        return await ctx.step("old way", echo, "version 1")


class Second(BaseAgent):
    name = "versioned"

    @workflow(version="2")
    async def run(self, ctx: Context, task: Any) -> str:
        await ctx.step("uno", echo, 1)
        return await ctx.step("new way", echo, "version 2")


class Both(BaseAgent):
    name = "versioned"

    @workflow(name="run", version="1")
    async def run_1(self, ctx: Context, task: Any) -> str:
        return await First.run(self, ctx, task)

    @workflow(name="run", version="2")
    async def a_newer_run(self, ctx: Context, task: Any) -> str:  # the newest by its place, not by its name
        return await Second.run(self, ctx, task)


class Plain(BaseAgent):
    name = "versioned"

    @workflow
    async def run(self, ctx: Context, task: Any) -> str:
        await ctx.wait_signal("go")
        return "plain"


async def test_a_run_whose_version_nobody_offers_stays_pending_says_so_and_goes_on_when_one_does(harness):
    async with harness(First) as h:
        run = await h.start({})
        await run.waiting()
        before = await run.get()
        assert (before["version"], len(before["source_hash"])) == ("1", 12)
        await h.restart(Second)
        await run.signal("go")
        new = await h.start({})
        assert await new.result() == "version 2"
        after = await run.get()
        assert (after["status"], after["reason"]["code"]) == ("pending", "waiting_for_version")
        assert "version '1'" in after["reason"]["message"]
        assert "'2'" in after["reason"]["message"]
        await h.restart(Both)  # offers both: the old one drains, with its own code
        assert await run.result() == "version 1"
        assert run.executions("one") == 1
        done = await run.get()
        assert (done["version"], done["source_hash"], done["reason"]) == ("1", before["source_hash"], None)
        newest = await h.start({})
        assert await newest.result() == "version 2"


async def test_a_new_life_of_a_run_takes_the_newest_version(harness):
    async with harness(First) as h:
        run = await h.start({"again": True})
        await run.waiting()
        await h.restart(Both)
        await run.signal("go")
        assert await run.result() == "version 2"
        assert (await run.get())["version"] == "2"


async def test_code_without_a_version_is_a_version_of_its_own(harness):
    async with harness(Plain) as h:
        run = await h.start({})
        await run.waiting()
        await run.signal("go")
        assert await run.result() == "plain"
        other = await h.start({})
        await other.waiting()
        await h.restart(Second)
        await other.signal("go")
        await (await h.start({})).result()
        found = await other.get()
        assert (found["status"], found["version"], found["reason"]["code"]) == ("pending", None, "waiting_for_version")


async def test_an_unknown_workflow_and_an_absent_agent_are_told(harness):
    async with harness(First) as h:
        odd = await h.start({}, workflow="no-such")
        found = await odd.get()
        assert (found["status"], found["reason"]["code"]) == ("pending", "waiting_for_workflow")
        await h.pool.execute("UPDATE processes SET state = 'gone'")
        assert (await odd.get())["reason"]["code"] == "waiting_for_process"


async def test_a_later_turn_of_a_session_says_that_it_waits_for_the_earlier(harness):
    async with harness(First) as h:
        first = await h.start({}, session_id="s")
        await first.waiting()
        second = await h.start({}, session_id="s")
        assert (await second.get())["reason"]["code"] == "waiting_for_turn"
        for run in (first, second):
            await run.signal("go")
        await h.restart()
        assert await first.result() == "version 1"


async def test_replicas_of_two_versions_side_by_side_each_get_their_runs_at_once(settings, nc):
    """A wake-up that reaches the other version's process is passed on, not left to the sweeper."""
    slow_sweeper = settings.model_copy(update={"redispatch_after": 600.0})
    async with in_process(slow_sweeper, nc, First) as platform:
        old = [await platform.start_run("versioned", {}) for _ in range(12)]
        for run_id in old:
            await until(platform, run_id, "waiting")
        await platform.agent(Second)
        for run_id in old:
            await signal(platform, run_id, "go")
        for run_id in old:
            assert (await until(platform, run_id, "completed", timeout=5.0))["output"] == "version 1"


async def test_the_older_versions_are_those_defined_earlier_and_two_alike_are_refused():
    class Sub(Both):
        name = "versioned"

        @workflow(name="run", version="0")
        async def last(self, ctx: Context, task: Any) -> None: ...

    found = Sub(None).workflows()["run"]  # type: ignore[arg-type]
    assert [found.version, *(each.version for each in found.older)] == ["0", "2", "1"]

    class Twice(Both):
        name = "versioned"

        @workflow(name="run", version="1")
        async def again(self, ctx: Context, task: Any) -> None: ...

    with pytest.raises(TypeError, match="two workflows called 'run', version '1'"):
        Twice(None).workflows()  # type: ignore[arg-type]


async def test_a_process_that_registers_anew_still_says_what_it_offers(settings, nc, pool):
    async with in_process(settings, nc, First) as platform:
        await pool.execute("UPDATE processes SET state = 'lost'")
        await eventually(lambda: pool.fetchval("SELECT 1 FROM processes WHERE state = 'live' AND versions = '{1}'"))
        run_id = await platform.start_run("versioned", {})
        await until(platform, run_id, "waiting")
