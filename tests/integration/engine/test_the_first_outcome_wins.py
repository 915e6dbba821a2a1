"""`race`, `select`, `wait_any`, `wait_for`: one winner, the same on every replay; the others are cancelled."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError, StepFailed
from perdure.testing import crash_at
from tests.engine_support import losing, signal, until
from tests.platform import in_process
from tests.support import eventually

ONCE = Retry(max_attempts=1)


class Racing(BaseAgent):
    name = "racing"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: Counter[str] = Counter()
        self.started = asyncio.Event()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        return await getattr(self, task["what"])(ctx)

    async def first_of_many(self, ctx: Context) -> Any:
        async def slow() -> str:
            try:
                await ctx.step("hangs too", self.hang)
            except asyncio.CancelledError:
                self.seen["branch cancelled"] += 1
                await ctx.step("tidy up", self.echo, "tidy")
                raise
            return "never"

        async def fast() -> list:
            return [await ctx.step("a", self.echo, "a"), await ctx.step("b", self.echo, "b")]

        won = await ctx.race(ctx.step("hangs", self.hang), slow(), fast(), ctx.gather(ctx.step("also", self.hang)))
        return [won, await ctx.step("after", self.echo, "goes on")]

    async def an_error_wins(self, ctx: Context) -> Any:
        try:
            await ctx.race(ctx.step("hangs", self.hang), ctx.step("fails", self.fail, retry=ONCE))
        except StepFailed as error:
            return error.name

    async def nested(self, ctx: Context) -> Any:
        async def pair(name: str) -> Any:
            return await ctx.race(ctx.step(name, self.echo, name), ctx.sleep(3600))

        inner = ctx.race(ctx.gather(pair("x"), pair("y")), ctx.wait_signal("never"))
        return await ctx.gather(inner, ctx.race(ctx.gather(), pair("z"), ctx.gather(pair("unbegun"))))

    async def which(self, ctx: Context) -> Any:
        index, value = await ctx.wait_any(ctx.wait_signal("never"), ctx.step("now", self.echo, 7))
        name, payload = await ctx.select(late=ctx.sleep(3600), paid=ctx.wait_signal("paid"))
        return [index, value, name, payload]

    async def time_over(self, ctx: Context) -> Any:
        try:
            await ctx.wait_for(ctx.wait_signal("never"), 60)
        except TimeoutError as error:
            first = str(error)
        return [first, await ctx.wait_for(ctx.step("quick", self.echo, "in time"), 60)]

    async def child_loses(self, ctx: Context) -> Any:
        return await ctx.race(ctx.call("racing", {"what": "waits"}, run_id="the-child"), ctx.wait_signal("stop"))

    async def waits(self, ctx: Context) -> Any:
        return await ctx.wait_signal("never")

    async def signal_and_step_together(self, ctx: Context) -> Any:
        first = await ctx.race(ctx.step("step", self.hold), ctx.wait_signal("s"))
        return [first, await ctx.wait_signal("s"), await ctx.wait_signal("s")]

    async def signal_over_lives(self, ctx: Context) -> Any:
        first = await ctx.race(ctx.step("step", self.hold), ctx.wait_signal("s"))
        ctx.continue_as_new({"what": "next_life", "first": first})

    async def next_life(self, ctx: Context) -> Any:
        return ["step", await ctx.wait_signal("s"), await ctx.wait_signal("s")]

    async def hold(self) -> str:
        self.started.set()
        await self.release.wait()
        return "step"

    @property
    def release(self) -> asyncio.Event:
        return self.__dict__.setdefault("_release", asyncio.Event())

    async def echo(self, value: Any) -> Any:
        return value

    async def hang(self) -> None:
        self.started.set()
        await asyncio.Event().wait()

    async def fail(self) -> None:
        await self.started.wait()
        raise PermanentError("it cannot be")


@pytest.fixture
async def racing(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Racing)


async def ended(platform, what: str) -> dict:
    run_id = await platform.start_run("racing", {"what": what})
    run = await until(platform, run_id, "completed", "failed", "blocked", "needs_review")
    assert run["status"] == "completed", run["error"]
    return run


@pytest.mark.in_memory
@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_the_first_outcome_wins_and_the_others_unwind_before_it_is_handed_over(racing, often):
    platform, process = racing
    if often == "straight":
        run = await ended(platform, "first_of_many")
        assert process.agent.seen == {"branch cancelled": 1}
    else:
        with losing(process) as losses:
            run = await ended(platform, "first_of_many")
        assert len(losses) == 4
    assert run["output"] == [["a", "b"], "goes on"]
    assert [step["name"] for step in run["steps"]] == ["a", "b", "tidy up", "after"]


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_an_error_wins_too_and_races_nest(racing, often):
    platform, process = racing
    if often == "straight":
        assert (await ended(platform, "an_error_wins"))["output"] == "fails"
        assert (await ended(platform, "nested"))["output"] == [["x", "y"], []]
    else:
        with losing(process):
            assert (await ended(platform, "an_error_wins"))["output"] == "fails"
            assert (await ended(platform, "nested"))["output"] == [["x", "y"], []]


async def test_the_winner_is_named_and_stays_the_winner_over_a_restart(harness):
    async with harness(Racing) as h:
        run = await h.start({"what": "which"})
        await run.waiting()
        await run.signal("paid", {"sum": 5})
        with crash_at("end.before"):
            await run.crashed()
        await h.clock.advance(7200)  # by now the sleep would win
        await h.restart()
        assert await run.result() == [1, 7, "paid", {"sum": 5}]
        assert run.executions("now") == 1


async def test_a_time_limit_counts_over_restarts(harness):
    async with harness(Racing) as h:
        run = await h.start({"what": "time_over"})
        await run.waiting()
        await h.clock.advance(50)
        await h.restart()
        await run.waiting()
        await h.clock.advance(11)
        assert await run.result() == ["it was not there within 60 s", "in time"]


async def test_a_child_that_loses_is_asked_to_end(racing):
    platform, _ = racing
    run_id = await platform.start_run("racing", {"what": "child_loses"})
    await until(platform, run_id, "waiting")
    await signal(platform, run_id, "stop", "stopped")
    assert (await until(platform, run_id, "completed"))["output"] == "stopped"
    await until(platform, "the-child", "cancelled")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("what", ["signal_and_step_together", "signal_over_lives"])
async def test_a_signal_whose_wait_lost_is_kept_for_the_next_wait_in_its_order(racing, restart, what):
    """The wait has taken the signal while the step's row was on its way; also over `continue_as_new`."""
    platform, process = racing
    run_id = await platform.start_run("racing", {"what": what})
    await process.agent.started.wait()
    journal = process.worker.journal
    pool, gate = journal.pool, asyncio.Event()

    class Gated:
        @asynccontextmanager
        async def acquire(self) -> AsyncIterator[Any]:
            await gate.wait()
            async with pool.acquire() as connection:
                yield connection

    journal.pool = Gated()  # type: ignore[assignment]
    process.agent.release.set()
    await eventually(lambda: not journal.idle)  # the step's row is on its way
    await signal(platform, run_id, "s", "first")
    await eventually(lambda: journal._waiting)  # the wait has taken the signal
    await signal(platform, run_id, "s", "second")
    journal.pool = pool
    gate.set()
    if restart:
        with losing(process, only=run_id):
            run = await until(platform, run_id, "completed", "blocked", "needs_review", "failed")
    else:
        run = await until(platform, run_id, "completed")
    assert run.get("output") == ["step", "first", "second"], run["error"]


async def test_a_race_of_nothing_is_refused(harness):
    class Empty(BaseAgent):
        name = "empty"

        @workflow
        async def run(self, ctx: Context, task: Any) -> Any:
            try:
                await ctx.race()
            except ValueError as error:
                return str(error)

    async with harness(Empty) as h:
        assert "at least one" in await (await h.start({})).result()
