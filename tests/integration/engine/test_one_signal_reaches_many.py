"""One signal to many runs counts once for each, however often a page is asked for."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.errors import Conflict, InvalidRequest, NotFound
from tests.engine_support import until
from tests.platform import in_process


class Waiter(BaseAgent):
    name = "waiter"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        return [await ctx.wait_signal("go"), await ctx.wait_signal("go")]


class Other(Waiter):
    name = "other"


async def test_a_signal_reaches_every_run_of_the_filter_once_also_when_a_page_is_asked_for_again(settings, nc):
    async with in_process(settings, nc, Waiter, Other) as platform, Client(settings) as client:
        for run_id in ("a", "b", "c"):
            await platform.start_run("waiter", 1, run_id=run_id)
        await platform.start_run("other", 1, run_id="other")
        for run_id in ("a", "b", "c", "other"):
            await until(platform, run_id, "waiting", "running")
        said = {"action": "signal", "name": "go", "payload": 1, "id": "first", "filter": {"agent": "waiter"}}
        for _ in range(2):
            assert (await platform.request("run.bulk", said))["done"] == 3
        pages = [page async for page in client.bulk("signal", name="go", payload=2, agent="waiter", page=2)]
        assert sum(page.done for page in pages) == 3
        for run_id in ("a", "b", "c"):
            assert (await until(platform, run_id, "completed"))["output"] == [1, 2]
        assert (await client.count("signal", agent="waiter")).matched == 0, "those that have ended hear nothing"
        assert (await client.count("signal", agent="other")).matched == 1


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"action": "signal", "id": "x"}, "name"),
        ({"action": "signal", "name": "go"}, "id"),
        ({"action": "signal", "name": "go\nhome", "id": "x"}, "name"),
        ({"action": "cancel", "name": "go"}, "name"),
    ],
)
async def test_a_signal_has_a_name_of_one_line_and_an_id_and_nothing_else_has(settings, nc, said, field):
    async with in_process(settings, nc) as platform:
        with pytest.raises(InvalidRequest, match=field):
            await platform.request("run.bulk", {**said, "all": True})


async def test_a_run_that_has_ended_or_is_gone_keeps_no_other_of_its_page_from_hearing(pool):
    await runs.accept(pool, [runs.new_start(run_id, "nobody", 1) for run_id in ("a", "b", "c")])
    await pool.execute("UPDATE runs SET status = 'completed', finished_at = now() WHERE run_id = 'b'")
    placed = await runs.send_signals(pool, ["c", "gone", "b", "a"], "go", {"n": 1}, "once")
    assert isinstance(placed["gone"], NotFound)
    assert isinstance(placed["b"], Conflict)
    assert [placed[run_id]["sent"] for run_id in ("a", "c")] == [True, True]
    again = await runs.send_signals(pool, ["a", "c"], "go", {"n": 1}, "once")
    assert [again[run_id]["sent"] for run_id in ("a", "c")] == [False, False]
    assert await pool.fetchval("SELECT count(*) FROM signals WHERE payload::text = '{\"n\":1}'") == 2
    assert await runs.send_signals(pool, [], "go", 1, None) == {}


async def test_pages_that_concern_the_same_runs_take_turns(pool):
    ids = [f"r{n}" for n in range(40)]
    await runs.accept(pool, [runs.new_start(run_id, "nobody", 1) for run_id in ids])

    async def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(10):
            chance.shuffle(mine := list(ids))
            await runs.send_signals(pool, mine, "go", seed, None)

    await asyncio.gather(*(send(seed) for seed in range(6)))
    assert await pool.fetchval("SELECT count(*) FROM signals") == 40 * 10 * 6
