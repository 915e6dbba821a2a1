from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError, StepFailed
from tests.engine_support import losing, until
from tests.platform import in_process

ONCE = Retry(max_attempts=1)


class Gathering(BaseAgent):
    name = "gathering"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: Counter[str] = Counter()
        self.started = asyncio.Event()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        return await getattr(self, task["what"])(ctx)

    async def order(self, ctx: Context) -> Any:
        async def branch(name: str, count: int) -> list:
            return [await ctx.step(name, self.echo, f"{name}{n}") for n in range(count)]

        empty = await ctx.gather()
        return empty + await ctx.gather(
            branch("a", 3), ctx.step("s", self.echo, "s"), ctx.gather(branch("b", 2), ctx.gather(branch("c", 1)))
        )

    async def first_failure(self, ctx: Context) -> Any:
        async def branch() -> None:
            try:
                await ctx.step("hangs too", self.hang)
            except asyncio.CancelledError:
                self.seen["branch cancelled"] += 1
                await ctx.step("tidy up", self.echo, "tidy")  # what it cleans up is journaled, too
                raise

        try:
            await ctx.gather(
                ctx.step("hangs", self.hang), branch(), ctx.step("fails", self.fail, retry=ONCE),
                ctx.step("fails as well", self.fail_later, retry=ONCE),
            )  # fmt: skip
        except StepFailed as error:
            return [error.name, await ctx.step("after", self.echo, "goes on")]

    async def branch_raises(self, ctx: Context) -> Any:
        async def branch(kind: type[BaseException]) -> None:
            await ctx.step("one", self.echo, 1)
            raise kind("out of a branch")

        found = []
        for kind in (ValueError, SystemExit, KeyboardInterrupt):
            try:
                await ctx.gather(branch(kind), ctx.step("hangs", self.hang))
            except BaseException as error:  # noqa: BLE001
                found.append(type(error).__name__)
        return found

    async def echo(self, value: Any) -> Any:
        return value

    async def hang(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.seen["step cancelled"] += 1
            raise

    async def fail(self) -> None:
        await self.started.wait()
        raise PermanentError("first")

    async def fail_later(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def gathering(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Gathering)


async def output(platform, what: str) -> Any:
    run_id = await platform.start_run("gathering", {"what": what})
    run = await until(platform, run_id, "completed", "failed", "blocked", "needs_review")
    assert run["status"] == "completed", run["error"]
    return run


async def test_results_stand_in_call_order_however_deep(gathering):
    platform, process = gathering
    expected = [["a0", "a1", "a2"], "s", [["b0", "b1"], [["c0"]]]]
    assert (await output(platform, "order"))["output"] == expected
    with losing(process):
        assert (await output(platform, "order"))["output"] == expected


@pytest.mark.in_memory
@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_the_first_failure_cancels_the_siblings_and_is_raised(gathering, often):
    platform, process = gathering
    if often == "straight":
        run = await output(platform, "first_failure")
        assert process.agent.seen == {"step cancelled": 2, "branch cancelled": 1}
    else:
        with losing(process):
            run = await output(platform, "first_failure")
    assert run["output"] == ["fails", "goes on"]
    assert [step["name"] for step in run["steps"]] == ["fails", "tidy up", "after"]


async def test_whatever_leaves_a_branch_is_raised_by_its_gather_and_ends_no_process(gathering):
    platform, _ = gathering
    assert (await output(platform, "branch_raises"))["output"] == ["ValueError", "SystemExit", "KeyboardInterrupt"]
