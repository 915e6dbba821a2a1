from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError
from perdure.testing import crash_at
from tests.engine_support import losing, until
from tests.platform import in_process


class Mapping(BaseAgent):
    name = "mapping"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.now = self.most = 0
        self.began: list[int] = []

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        return await getattr(self, task["what"])(ctx, task)

    async def double(self, ctx: Context, task: dict) -> Any:
        async def one(item: int) -> list:
            first = await ctx.step("work", self.work, item)
            return [first, await ctx.step("again", self.work, first)]

        return await ctx.map(one, range(task["items"]), concurrency=task["at_once"])

    async def failing(self, ctx: Context, task: dict) -> Any:
        def one(item: int) -> Any:
            return ctx.step("work", self.fail if item == 2 else self.work, item, retry=Retry(max_attempts=1))

        try:
            await ctx.map(one, range(100), concurrency=2)
        except Exception as error:  # noqa: BLE001
            return str(error)

    async def nested(self, ctx: Context, task: dict) -> Any:
        async def row(width: int) -> list:
            return await ctx.map(lambda item: ctx.step("cell", self.work, item), range(width), concurrency=1)

        return await ctx.map(row, [0, 1, 3])

    async def wrong(self, ctx: Context, task: dict) -> Any:
        return await ctx.map(lambda item: item, [1])  # type: ignore[arg-type,return-value]

    async def work(self, item: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        self.began.append(item)
        await asyncio.sleep(0)
        self.now -= 1
        return item * 2

    async def fail(self, item: int) -> int:
        raise PermanentError(f"item {item} is bad")


@pytest.fixture
async def mapping(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Mapping)


async def ended(platform, **task: Any) -> dict:
    return await until(platform, await platform.start_run("mapping", task), "completed", "failed", "blocked")


@pytest.mark.parametrize("at_once", [1, 3, None])
async def test_no_more_items_run_at_once_than_the_bound_and_results_stand_in_item_order(mapping, at_once):
    platform, process = mapping
    run = await ended(platform, what="double", items=10, at_once=at_once)
    assert run["output"] == [[n * 2, n * 4] for n in range(10)]
    assert process.agent.most == at_once or at_once is None


async def test_items_keep_their_branches_when_the_run_is_lost_after_each_row(mapping):
    platform, process = mapping
    with losing(process) as losses:
        run = await ended(platform, what="double", items=4, at_once=2)
    assert run["output"] == [[n * 2, n * 4] for n in range(4)]
    assert len(losses) >= 6


async def test_a_restart_in_the_middle_does_no_recorded_item_again(harness):
    async with harness(Mapping) as h:
        with crash_at("step.after_commit", step="again"):
            run = await h.start({"what": "double", "items": 5, "at_once": 1})
            await run.crashed()
        await h.restart()
        assert await run.result() == [[n * 2, n * 4] for n in range(5)]
        assert run.executions("work") == 5


async def test_after_a_failure_no_further_item_begins_and_it_is_raised(mapping):
    platform, process = mapping
    run = await ended(platform, what="failing")
    assert "item 2 is bad" in run["output"]
    assert max(process.agent.began) <= 4


async def test_maps_nest_and_an_empty_one_is_empty(mapping):
    platform, process = mapping
    assert (await ended(platform, what="nested"))["output"] == [[], [0], [0, 2, 4]]
    with losing(process):
        assert (await ended(platform, what="nested"))["output"] == [[], [0], [0, 2, 4]]


async def test_a_function_that_returns_no_call_is_told(mapping):
    platform, _ = mapping
    run = await ended(platform, what="wrong")
    assert (run["status"], run["error"]["type"]) == ("failed", "WorkflowMisuse")
    assert "returned int" in run["error"]["message"]
