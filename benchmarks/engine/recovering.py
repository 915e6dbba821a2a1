"""The agent of the benchmarks of losses and of many runs: its steps leave a row, so that others see when and where."""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import Any

from perdure import BaseAgent, Context, run_agent, workflow


class Recovering(BaseAgent):
    """What it is told by its workflows' tasks."""

    name = "recovering"

    @workflow
    async def beats(self, ctx: Context, task: dict[str, Any]) -> int:
        """So many steps, so many seconds each."""
        for _ in range(task["steps"]):
            await ctx.step("beat", self.beat, ctx.run_id, task["every"])
        return int(task["steps"])

    @workflow
    async def long(self, ctx: Context, task: int) -> int:
        """A long journal, then signals, each followed by a step."""
        for at in range(0, task, 500):
            await ctx.gather(*(ctx.step("row", self.row, at + each) for each in range(500)))
        for _ in range(5):
            at = await ctx.wait_signal("go")
            await ctx.step("beat", self.beat, f"{ctx.run_id} {at}", 0.0)
        return task

    @workflow
    async def nap(self, ctx: Context, task: str) -> None:
        """Sleep until a moment."""
        await ctx.sleep_until(datetime.fromisoformat(task))
        await ctx.step("awake", self.row, 0)

    @workflow
    async def wait(self, ctx: Context) -> Any:
        """Wait for a word."""
        return await ctx.wait_signal("word")

    async def beat(self, run_id: str, seconds: float) -> None:
        """A row that says who and when."""
        await self.resources.pool.execute("INSERT INTO beats (run_id, pid) VALUES ($1, $2)", run_id, os.getpid())
        await asyncio.sleep(seconds)

    async def row(self, number: int) -> int:
        """Nothing."""
        return number


if __name__ == "__main__":
    run_agent(Recovering)
