"""`@step`: a journaled step in a workflow, an ordinary function elsewhere; budgets of retries outlive processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import BaseAgent, Context, Retry, StepContext, StepFailed, step, workflow
from tests.engine_support import lose, losing, until
from tests.platform import in_process
from tests.support import eventually


@dataclass
class Price:
    item: str
    cents: int


ran: Counter[str] = Counter()


@step
async def shout(text: str) -> str:
    """Loudly."""
    ran["shout"] += 1
    return text.upper()


class Shop(BaseAgent):
    name = "shop"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ran: Counter[str] = Counter()

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        one = await self.price("tea")
        two, three = await ctx.gather(self.price("rice"), shout("hey"))
        more = await ctx.map(self.price, ["salt", "milk"], concurrency=1)
        named = await ctx.step("by name", self.price, "oil")
        return [one.cents, two.cents, three, [each.item for each in more], named.cents, await self.outer()]

    @workflow
    async def slow(self, ctx: Context, task: Any) -> Any:
        try:
            await self.hang()
        except StepFailed as failed:
            return [failed.name, failed.attempts, failed.cause["type"]]

    @workflow
    async def budget(self, ctx: Context, task: Any) -> Any:
        try:
            await self.fail()
        except StepFailed as failed:
            return failed.attempts

    @workflow
    async def raw(self, ctx: Context, task: Any) -> Any:
        return await asyncio.create_task(self.caller())

    async def caller(self) -> Any:
        return await self.price("tea")

    @step(name="look up", retry=Retry(max_attempts=2, delay=0.0))
    async def price(self, item: str, me: StepContext | None = None) -> Price:
        self.ran[item] += 1
        if item == "tea" and self.ran[item] == 1:
            raise OSError("closed")
        return Price(item, len(item))

    @step
    async def outer(self, me: StepContext) -> int:
        inner = await self.price("salt")
        (other,) = await asyncio.gather(self.price("milk"))
        return inner.cents + other.cents + (me.attempt - 1)

    @step(timeout=0.02, retry=Retry(max_attempts=2, delay=0.0))
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @step(retry=Retry(max_attempts=100, delay=0.2, factor=1.0, jitter=False, max_time=0.5))
    async def fail(self) -> None:
        self.ran["fail"] += 1
        raise OSError("again")


@pytest.fixture
async def shop(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Shop)


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_a_marked_function_is_a_step_where_a_workflow_calls_it(shop, often):
    platform, process = shop
    if often == "straight":
        run_id = await platform.start_run("shop", {})
        run = await until(platform, run_id, "completed", "failed", "blocked")
    else:
        with losing(process):
            run_id = await platform.start_run("shop", {})
            run = await until(platform, run_id, "completed", "failed", "blocked", timeout=30)
    assert run["output"] == [3, 4, "HEY", ["salt", "milk"], 3, 8], run["error"]
    steps = [each["name"] for each in run["steps"] if each["status"] == "completed"]
    assert sorted(steps) == sorted(["look up"] * 4 + ["shout", "by name", "outer"]), "within a step it simply runs"
    assert process.agent.ran["tea"] == 2, "the options of the mark hold"


async def test_outside_of_a_run_it_simply_runs():
    agent = Shop.__new__(Shop)
    agent.ran = Counter(tea=1)
    assert (await agent.price("tea")).item == "tea"
    assert await shout("x") == "X"
    assert (shout.__name__, shout.__doc__) == ("shout", "Loudly.")


async def test_its_timeout_bounds_each_attempt(shop):
    platform, _ = shop
    run = await platform.ask("shop", {}, workflow="slow")
    assert run["output"] == ["hang", 2, "TimeoutError"]


@pytest.mark.in_memory  # a run that waits for its next try is lost while it is held
async def test_the_budget_of_its_retries_counts_over_lost_processes(shop):
    platform, process = shop
    run_id = await platform.start_run("shop", {}, workflow="budget")
    for tries in (1, 2):
        await eventually(lambda tries=tries: process.agent.ran["fail"] == tries)
        await lose(process, process.worker.executions[run_id])
    run = await until(platform, run_id, "completed", "failed")
    assert run["output"] < 5, "a budget that began anew would allow more"


async def test_in_a_task_of_its_own_it_is_misuse(shop):
    platform, _ = shop
    run = await until(platform, await platform.start_run("shop", {}, workflow="raw"), "failed", "completed")
    assert run["error"]["type"] == "WorkflowMisuse"


def test_it_goes_on_async_functions():
    with pytest.raises(TypeError, match="async"):
        step(lambda: 1)  # type: ignore[arg-type]
