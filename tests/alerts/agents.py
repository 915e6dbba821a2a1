"""Agents whose work goes wrong in the one way that their name says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from perdure import BaseAgent, Context, DurableAgent, workflow
from perdure.agent.triggers import on
from perdure.llm.types import ModelReply, ModelRequest, OnDelta


class Shop(BaseAgent):
    """Works; what is changed or sent to it may be wrong."""

    name = "shop"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return await ctx.step("work", self.work, task)

    async def work(self, task: Any) -> Any:
        return task

    @workflow
    async def changes(self, ctx: Context, task: str) -> None:
        """As if its code was changed: the name of its first step stands in a file."""
        await ctx.step(Path(task).read_text(), self.work, 1)  # noqa: ASYNC240 -- what an author must not do
        await ctx.wait_signal("go")

    @on("alerts.orders")
    async def ordered(self, ctx: Context, task: dict[str, int]) -> None:
        """Orders are objects of numbers."""


class Failing(BaseAgent):
    name = "failing"

    @workflow
    async def run(self, ctx: Context, task: Any) -> None:
        raise ValueError("it always fails")


class Killer(BaseAgent):
    name = "killer"

    @workflow
    async def run(self, ctx: Context, task: Any) -> None:
        await ctx.step("kill", self.kill)

    async def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Holder(BaseAgent):
    name = "holder"

    @workflow
    async def run(self, ctx: Context, task: float) -> None:
        await ctx.step("hold", self.hold, task)

    async def hold(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 -- what an author must not do


class Stubborn(BaseAgent):
    name = "stubborn"

    @workflow
    async def run(self, ctx: Context, task: float) -> None:
        await ctx.step("stay", self.stay, task)

    def stay(self, seconds: float) -> None:
        """In a thread, which nobody can cancel."""
        time.sleep(seconds)


talker = DurableAgent("talker", role="speaks with a model that is not well")


class Model:
    """Answers with many tokens."""

    async def complete(self, request: ModelRequest, *, on_delta: OnDelta | None = None) -> ModelReply:
        return ModelReply("a long answer", "answer", input_tokens=1000, output_tokens=1000)


spender = DurableAgent("spender", role="spends", model=Model())
