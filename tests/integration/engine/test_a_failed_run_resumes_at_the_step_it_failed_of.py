from __future__ import annotations

from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
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
