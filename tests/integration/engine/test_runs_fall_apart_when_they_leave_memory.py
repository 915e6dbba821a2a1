"""What a run was made of is freed when it leaves memory, not when a collection finds it, which stops all others."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.engine.execution import Execution
from perdure.errors import StepFailed
from tests.engine_support import at_rest, until
from tests.platform import in_process
from tests.support import eventually

ONCE = Retry(max_attempts=1)


class Made(BaseAgent):
    name = "made"

    @workflow
    async def steps(self, ctx: Context, task: Any) -> Any:
        for number in range(3):
            await ctx.step("one", self.one, number)

    @workflow
    async def parts(self, ctx: Context, task: Any) -> Any:
        await ctx.gather(ctx.step("a", self.one, 1), self.line(ctx), ctx.gather(ctx.step("b", self.one, 2)))

    async def line(self, ctx: Context) -> Any:
        return await ctx.step("one", self.one, 1)

    @workflow
    async def caught(self, ctx: Context, task: Any) -> Any:
        try:
            await ctx.step("bad", self.bad, retry=ONCE)
        except StepFailed:
            await ctx.step("one", self.one, 1)

    @workflow
    async def undone(self, ctx: Context, task: Any) -> Any:
        ctx.on_failure(self.one, 1)
        await ctx.step("bad", self.bad, retry=ONCE)

    @workflow
    async def asleep(self, ctx: Context, task: Any) -> Any:
        async def back() -> str:
            return ctx.run_id

        ctx.on_failure(back)
        await ctx.sleep("long", 3600)

    @workflow
    async def asleep_in_parts(self, ctx: Context, task: Any) -> Any:
        await ctx.gather(self.wait(ctx), ctx.wait_signal("other"))

    async def wait(self, ctx: Context) -> Any:
        return await ctx.wait_signal("one", timeout=3600)

    async def one(self, number: int) -> int:
        return number

    async def bad(self) -> None:
        raise ValueError("bad")


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    logging.disable()  # a record that is kept for a report keeps the error, and with it the run that raised it
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


ENDS = {"undone": "failed", "asleep": "waiting", "asleep_in_parts": "waiting"}


@pytest.mark.in_memory  # replays at every await still leave some to collections
@pytest.mark.usefixtures("uncollected")
async def test_a_run_that_has_left_is_freed_without_a_collection(settings, nc, monkeypatch):
    made: dict[str, list[weakref.ref[Execution]]] = {}
    begin = Execution.start

    def noted(execution: Execution) -> None:
        made.setdefault(execution.run.workflow, []).append(weakref.ref(execution))
        begin(execution)

    monkeypatch.setattr(Execution, "start", noted)

    def left() -> list[str]:
        return [name for name, runs in made.items() if any(each() is not None for each in runs)]

    def all_gone() -> bool:
        assert left() == [], "these are still in memory"
        return True

    async with in_process(settings, nc) as platform:
        process = await platform.agent(Made)
        for name in ("steps", "parts", "caught", "undone", "asleep", "asleep_in_parts"):
            run_id = await platform.start_run("made", None, workflow=name)
            await until(platform, run_id, ENDS.get(name, "completed"))
        await at_rest(process)
        await eventually(all_gone)
