from __future__ import annotations

import asyncio

import orjson

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.platform import in_process
from tests.support import eventually


class Adder(BaseAgent):
    name = "adder"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        one = await ctx.step("double", self.double, task["n"])
        both = await ctx.gather(*(ctx.step("double", self.double, n) for n in (one, one + 1)))
        return {"both": both, "now": str(ctx.now())}

    @workflow
    async def patient(self, ctx: Context, task: dict) -> str:
        return await ctx.wait_signal("word")

    async def double(self, n: int) -> int:
        return n * 2


async def test_a_run_of_steps_answers_over_nats(settings, nc):
    async with in_process(settings, nc, Adder) as platform:
        reply = await platform.ask("adder", {"n": 2})
        assert reply["status"] == "completed"
        assert reply["output"]["both"] == [8, 10]
        run = await platform.run(reply["run_id"])
        assert [step["name"] for step in run["steps"]] == ["double", "double", "double"]


async def test_the_end_of_a_run_is_believed_of_its_own_agent_alone(settings, nc, pool):
    async with in_process(settings, nc, Adder) as platform:
        asked = asyncio.create_task(platform.ask("adder", {}, workflow="patient", run_id="r-1"))
        await eventually(lambda: pool.fetchval("SELECT status = 'waiting' FROM runs WHERE run_id = 'r-1'"))
        forged = {"status": "completed", "run_id": "r-1", "output": "forged"}
        await nc.publish("run.ended.other.r-1", orjson.dumps(forged))
        await platform.request("run.signal", {"run_id": "r-1", "name": "word", "payload": "true"})
        assert (await asked)["output"] == "true"
