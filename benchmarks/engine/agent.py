"""The agent that the engine's benchmarks measure: no-op steps in a row, or at once."""

from __future__ import annotations

from typing import Any

from perdure import BaseAgent, Context, run_agent, workflow


class Bench(BaseAgent):
    """Its task is `{"steps": n}`."""

    name = "bench"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> int:
        """Workloads A and B: one step after the other."""
        for number in range(task["steps"]):
            await ctx.step("noop", self.noop, number)
        return int(task["steps"])

    @workflow
    async def fan(self, ctx: Context, task: dict[str, Any]) -> int:
        """Workload C: all steps at once."""
        await ctx.gather(*(ctx.step("noop", self.noop, number) for number in range(task["steps"])))
        return int(task["steps"])

    async def noop(self, number: int) -> int:
        """Nothing."""
        return number


if __name__ == "__main__":
    run_agent(Bench)
