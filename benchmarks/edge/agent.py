"""The agent that the gateway's benchmark watches: an event now and then."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure import BaseAgent, Context, run_agent, workflow


class Ticker(BaseAgent):
    """Its task is `{"ticks": n, "every": seconds}`; with `"fail": true` it fails after the last tick."""

    name = "ticker"

    @workflow
    async def run(self, ctx: Context, task: dict[str, Any]) -> int:
        """One step a tick."""
        for number in range(task["ticks"]):
            await ctx.step("tick", self.tick, task["every"], number)
        if task.get("fail"):
            raise ValueError("as it was told")
        return int(task["ticks"])

    async def tick(self, every: float, number: int) -> int:
        """Wait."""
        await asyncio.sleep(every)
        return number


if __name__ == "__main__":
    run_agent(Ticker)
