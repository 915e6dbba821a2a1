from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import StepFailed
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually


class Shop(BaseAgent):
    name = "shop"
    open = False
    packed = 0

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        order = await ctx.step("pack", self.pack)
        return await ctx.step("ship", self.ship, order, retry=Retry(max_attempts=2, delay=0.0))

    async def pack(self) -> int:
        type(self).packed += 1
        return 7

    async def ship(self, order: int) -> str:
        if not type(self).open:
            raise OSError("the carrier is closed")
        return f"order {order} is on its way"


@pytest.fixture
def shop():
    class Mine(Shop):
        name = "shop"

    return Mine


async def test_the_step_is_tried_again_and_those_before_it_are_not(settings, nc, shop):
    events: list[dict] = []

    async def note(message: Any) -> None:
        events.append(orjson.loads(message.data))

    await nc.subscribe("run.events.*", cb=note)
    async with in_process(settings, nc, shop) as platform:
        run_id = await platform.start_run("shop", {})

        async def ended(status: str) -> bool:
            return (await platform.run(run_id))["status"] == status

        await eventually(lambda: ended("failed"))
        failed = await platform.run(run_id)
        assert failed["error"]["type"] == "StepFailed"
        assert failed["error"]["attempts"] == 2

        shop.open = True
        resumed = await platform.request("run.resume", {"run_id": run_id})
        assert resumed["status"] in {"pending", "running", "completed"}, (
            "as far as it has come by the time of the reply"
        )
        await eventually(lambda: ended("completed"))
        done = await platform.run(run_id)
        assert done["output"] == "order 7 is on its way"
        assert shop.packed == 1
        assert [step["name"] for step in done["steps"] if step["status"] == "completed"] == ["pack", "ship"]

        await eventually(lambda: any(event["type"] == "run.completed" for event in events))
    durable = [event["seq"] for event in events if not event["type"].startswith(("step.started", "run.waiting"))]
    assert durable == sorted(durable)
    assert len(set(durable)) == len(durable), "a seq that was used for the first end is not used again"


async def test_a_step_that_fails_again_fails_the_run_again(settings, nc, shop):
    async with in_process(settings, nc, shop) as platform:
        run_id = await platform.start_run("shop", {})

        async def failed() -> bool:
            return (await platform.run(run_id))["status"] == "failed"

        await eventually(failed)
        first = len((await platform.run(run_id))["steps"])
        await platform.request("run.resume", {"run_id": run_id})
        await eventually(failed)
        assert len((await platform.run(run_id))["steps"]) == first


class Fleet(BaseAgent):
    name = "fleet"
    open = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.all_there = asyncio.Barrier(3)
        self.asked: list[int] = []

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        try:
            await ctx.step("radio", self.radio, retry=Retry(max_attempts=1))
        except StepFailed:
            await ctx.step("go without", self.note, 0)
        return await ctx.gather(*(ctx.step("sail", self.sail, n, retry=Retry(max_attempts=1)) for n in (1, 2, 3)))

    @workflow
    async def admiral(self, ctx: Context, task: dict) -> Any:
        return await ctx.call("fleet", {}, run_id="the-fleet")

    async def radio(self) -> None:
        self.asked.append(-1)
        raise OSError("nobody hears")

    async def note(self, n: int) -> None:
        self.asked.append(n)

    async def sail(self, n: int) -> int:
        if type(self).open:
            return n
        await self.all_there.wait()
        raise OSError("there is no wind")


@pytest.fixture
def fleet():
    class Mine(Fleet):
        name = "fleet"

    return Mine


async def test_steps_that_failed_side_by_side_are_all_tried_again(settings, nc, fleet):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(fleet)
        run_id = await platform.start_run("fleet", {})
        await until(platform, run_id, "failed")
        fleet.open = True
        await platform.request("run.resume", {"run_id": run_id})
        done = await until(platform, run_id, "completed", "failed", "blocked")
        assert (done["status"], done["output"]) == ("completed", [1, 2, 3])
        assert process.agent.asked == [-1, 0], "a failure that the workflow had caught stays"


async def test_a_run_that_failed_of_its_child_asks_again_how_that_is(settings, nc, fleet):
    async with in_process(settings, nc, fleet) as platform:
        parent = await platform.start_run("fleet", {}, workflow="admiral")
        await until(platform, parent, "failed")
        fleet.open = True
        await platform.request("run.resume", {"run_id": "the-fleet"})
        await until(platform, "the-fleet", "completed")
        await platform.request("run.resume", {"run_id": parent})
        assert (await until(platform, parent, "completed", "failed"))["output"] == [1, 2, 3]
