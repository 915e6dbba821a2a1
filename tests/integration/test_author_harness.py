from __future__ import annotations

import pytest

from perdure import BaseAgent, Retry, RunFailed, StepContext, workflow
from perdure.testing import crash_at


class Invoices(BaseAgent):
    name = "invoices"

    @workflow
    async def run(self, ctx, task):
        lines = await ctx.step("read", self.read, task["file"])
        parts = await ctx.gather(*(ctx.step("price", self.price, line, retry=Retry(max_attempts=5)) for line in lines))
        await ctx.sleep("cool-off", 30)
        await ctx.wait_signal("approved", timeout=3600)
        return {"sent": await ctx.call("mailer", {"total": sum(parts)})}

    async def read(self, file: str) -> list[str]:
        return ["a", "bb"]

    async def price(self, line: str, step: StepContext) -> float:
        assert step.idempotency_key
        return len(line) * 1.5


async def test_the_contracts_example_of_an_authors_test(harness):
    async with harness(Invoices, mocks={"mailer": {"id": 1}}) as h:
        with crash_at("step.before_commit", step="price"):
            run = await h.start({"file": "f"})
            await run.crashed()
        await h.restart()
        await h.clock.advance(30)
        await run.signal("approved", True)
        assert await run.result() == {"sent": {"id": 1}}
        assert run.executions("read") == 1
        assert run.executions("price") >= 3


async def test_a_signal_that_never_comes_is_a_timeout_an_hour_later(harness):
    async with harness(Invoices, mocks={"mailer": {"id": 1}}) as h:
        run = await h.start({"file": "f"})
        await h.clock.advance(30)
        await h.clock.advance(3600)
        with pytest.raises(RunFailed) as failed:
            await run.result()
        assert failed.value.error["type"] == "TimeoutError"


@pytest.mark.parametrize(
    "point", ["claim.after", "step.before", "step.after_effect", "step.after_commit", "wait.before", "end.before"]
)
async def test_a_crash_at_any_point_changes_no_result(harness, point):
    async with harness(Invoices, mocks={"mailer": {"id": 1}}) as h:
        with crash_at(point):
            run = await h.start({"file": "f"})
            if point == "end.before":
                await h.clock.advance(30)
                await run.signal("approved", True)
            await run.crashed()
        await h.restart()
        await h.clock.advance(30)
        if point != "end.before":
            await run.signal("approved", True)
        assert await run.result() == {"sent": {"id": 1}}


async def test_a_point_that_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"step\.before_commit"), crash_at("step.nowhere"):
        pass


async def test_configuration_changes_under_a_running_agent(harness):
    class Greeter(BaseAgent):
        name = "greeter"

        @workflow
        async def run(self, ctx, task):
            return ctx.config.get_setting("greeting", "hello")

    async with harness(Greeter, config={"greeting": "hi"}) as h:
        assert await (await h.start({})).result() == "hi"
        await h.configure(greeting="ahoy")
        assert await (await h.start({})).result() == "ahoy"


async def test_a_crash_may_strike_while_the_clock_is_moved(harness):
    class Flaky(BaseAgent):
        name = "flaky"

        @workflow
        async def run(self, ctx, task):
            return await ctx.step("try", self.attempt, retry=Retry(max_attempts=3, delay=10, jitter=False))

        async def attempt(self, step: StepContext) -> int:
            if step.attempt < 3:
                raise OSError("not now")
            return step.attempt

    async with harness(Flaky) as h:
        run = await h.start({})
        await run.waiting()
        with crash_at("step.before", step="try"):
            await h.clock.advance(10)
            await run.crashed()
        await h.restart()
        await h.clock.advance(20)
        assert await run.result() == 3
