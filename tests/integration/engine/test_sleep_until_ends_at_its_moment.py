from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow


class Sleeper(BaseAgent):
    name = "sleeper"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        began = ctx.now()
        await ctx.sleep_until("past", datetime(2020, 1, 1, tzinfo=UTC))
        await ctx.sleep_until(began + timedelta(hours=1))
        return (ctx.now() - began).total_seconds()

    @workflow
    async def naive(self, ctx: Context, task: dict) -> Any:
        await ctx.sleep_until("bad", datetime(2020, 1, 1))  # noqa: DTZ001


async def test_a_run_sleeps_until_its_moment_over_restarts_and_one_that_is_past_is_no_sleep(harness):
    async with harness(Sleeper) as h:
        run = await h.start({})
        await run.waiting()
        await h.clock.advance(3000)
        await h.restart()
        await run.waiting()
        await h.clock.advance(590)
        assert (await run.get())["status"] == "waiting"
        await h.clock.advance(15)
        assert await run.result() == pytest.approx(3600, abs=20)


async def test_a_moment_without_a_time_zone_is_refused(harness):
    async with harness(Sleeper) as h:
        run = await h.start({}, workflow="naive")
        with pytest.raises(Exception, match="no time zone"):
            await run.result()
