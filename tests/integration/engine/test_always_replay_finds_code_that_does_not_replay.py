"""`always_replay`: at every await a run leaves memory and comes back from its journal."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from perdure.errors import RunFailed

CHANCE = itertools.count()


class Careless(BaseAgent):
    """Its workflows, but for `run`, depend on something that another process would not have."""

    name = "careless"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.began = 0

    @workflow
    async def run(self, ctx: Context, task: Any) -> list[Any]:
        self.began += 1
        first = await ctx.step("one", self.echo, 1)
        parts = await ctx.gather(ctx.step("two", self.echo, 2), self.line(ctx), ctx.sleep(10))
        await ctx.sleep("nap", 60)
        said = await ctx.wait_signal("go")
        booked = await ctx.transaction("book", self.book)
        return [first, parts, said, booked, ctx.patched("new"), await ctx.step("last", self.echo, 3)]

    async def line(self, ctx: Context) -> list[Any]:
        return [await ctx.step("a", self.echo, "a"), await ctx.step("b", self.echo, "b")]

    @workflow
    async def argument(self, ctx: Context, task: Any) -> Any:
        return await ctx.step("draw", self.echo, next(CHANCE))

    @workflow
    async def remembers(self, ctx: Context, task: Any) -> Any:
        self.began += 1
        if self.began == 1:
            await ctx.step("only the first time", self.echo, 1)
        return await ctx.step("always", self.echo, 2)

    @workflow
    async def race(self, ctx: Context, task: Any) -> Any:
        self.began += 1
        won = await ctx.race(ctx.step("hangs", self.hang), ctx.step("quick", self.echo, next(CHANCE)))
        return won is not None

    async def echo(self, value: Any) -> Any:
        return value

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def book(self, connection: Any) -> int:
        return int(await connection.fetchval("SELECT 7"))


async def test_a_sound_workflow_ends_the_same_and_repeats_no_step(harness):
    async with harness(Careless, always_replay=True) as h:
        run = await h.start(None)
        await h.clock.advance(100)
        await run.signal("go", "now")
        assert await run.result() == [1, [2, ["a", "b"], None], "now", 7, True, 3]
        assert [run.executions(name) for name in ("one", "two", "a", "b", "book", "last")] == [1] * 6
        assert h.agent.began > 8, "it begins anew at each await"
        assert (await run.get())["attempts"] <= 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("argument", "the code asked for other arguments"),
        ("remembers", "the code asked for step 'always'"),
        ("race", "the code asked for other arguments"),
    ],
)
async def test_what_another_process_would_not_know_stops_the_run_at_once(harness, name, said):
    async with harness(Careless, always_replay=True) as h:
        run = await h.start(None, workflow=name)
        with pytest.raises(RunFailed) as failed:
            await run.result()
        assert failed.value.status == "blocked"
        assert said in failed.value.error["message"]


async def test_without_the_mode_such_code_goes_unseen(harness):
    async with harness(Careless, always_replay=False) as h:
        run = await h.start(None, workflow="remembers")
        assert await run.result() == 2
        assert h.agent.began == 1
