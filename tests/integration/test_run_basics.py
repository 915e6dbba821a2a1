from __future__ import annotations

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from tests.platform import in_process


class Adder(BaseAgent):
    name = "adder"

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        one = await ctx.step("double", self.double, task["n"])
        both = await ctx.gather(*(ctx.step("double", self.double, n) for n in (one, one + 1)))
        return {"both": both, "now": str(ctx.now())}

    async def double(self, n: int) -> int:
        return n * 2


async def test_a_run_of_steps_answers_over_nats(settings, nc):
    async with in_process(settings, nc, Adder) as platform:
        reply = await platform.ask("adder", {"n": 2})
        assert reply["status"] == "completed"
        assert reply["output"]["both"] == [8, 10]
        run = await platform.run(reply["run_id"])
        assert [step["name"] for step in run["steps"]] == ["double", "double", "double"]
