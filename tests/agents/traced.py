"""Agents of one file each process of which is traced: a mother that calls a child, for `AGENT=mother|child`."""

from __future__ import annotations

import os

from perdure import BaseAgent, Context, run_agent, workflow


class Mother(BaseAgent):
    name = "mother"

    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        await ctx.step("first", self.work, task)
        await ctx.step("second", self.gate, task)
        return str(await ctx.call("child", task))

    async def work(self, task: str) -> str:
        return task

    async def gate(self, task: str) -> str:
        if os.environ.get("HANG"):
            import asyncio

            await asyncio.sleep(600)
        return task


class Child(BaseAgent):
    name = "child"

    @workflow
    async def run(self, ctx: Context, task: str) -> str:
        return await ctx.step("answer", self.work, task)

    async def work(self, task: str) -> str:
        return task.upper()


if __name__ == "__main__":
    run_agent({"mother": Mother, "child": Child}[os.environ["AGENT"]])
