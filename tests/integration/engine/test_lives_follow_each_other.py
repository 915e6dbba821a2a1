"""continue_as_new, patched, fork and resume: one run, or one history, over several lives of the code."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, StepContext, runs, workflow
from perdure.engine.commits import commit_moves
from perdure.engine.entries import Entry
from perdure.engine.rows import Move
from perdure.errors import PermanentError
from tests.engine_support import losing, signal, until
from tests.platform import in_process


class Living(BaseAgent):
    name = "living"
    patch = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ran: Counter[str] = Counter()
        self.broken = True

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        n = await ctx.step("count", self.count, task["n"])
        now = ctx.now()
        await ctx.step("see", self.count, f"{now} {ctx.uuid()}")
        if n < task["until"]:
            ctx.continue_as_new({**task, "n": n + 1, "began": [*task.get("began", []), now.timestamp()]})
        return {"n": n, "began": task.get("began", [])}

    @workflow
    async def bad(self, ctx: Context, task: dict) -> Any:
        ctx.continue_as_new({"x": object()})

    @workflow
    async def patched(self, ctx: Context, task: dict) -> Any:
        await ctx.step("before", self.count, "before")
        new = ctx.patched("better") if type(self).patch else False
        booked = await ctx.transaction("book", self.book) if new else await ctx.step("old", self.count, "old")
        await ctx.wait_signal("go")
        return [booked, ctx.patched("better") if type(self).patch else False]

    @workflow
    async def forked(self, ctx: Context, task: dict) -> Any:
        a = await ctx.step("a", self.count, "a")
        child = await ctx.call("living", {}, workflow="child")
        b = await ctx.step("b", self.count, "b")
        return [a, child, b]

    @workflow
    async def chancy(self, ctx: Context, task: dict) -> list[Any]:
        first = [str(ctx.uuid()), ctx.random()]
        await ctx.step("first", self.count, first)
        second = str(ctx.uuid())
        await ctx.step("second", self.count, second)
        third = str(ctx.uuid())
        await ctx.gather(ctx.step("third", self.count, third), ctx.step("fourth", self.count, str(ctx.uuid())))
        return [first, second, third]

    @workflow
    async def tried(self, ctx: Context, task: dict) -> list[int]:
        return await ctx.gather(
            ctx.step("try", self.third, retry=Retry(max_attempts=3, delay=0.0)), ctx.step("other", self.count, 1)
        )

    @workflow
    async def child(self, ctx: Context, task: dict) -> str:
        return await ctx.step("c", self.count, "c")

    @workflow
    async def breaks(self, ctx: Context, task: dict) -> str:
        await ctx.step("fine", self.count, "fine")
        if self.broken:
            raise PermanentError("the code is wrong")
        return "mended"

    async def count(self, value: Any) -> Any:
        self.ran[str(value)] += 1
        return value

    async def third(self, step: StepContext) -> int:
        self.ran[f"{step.run_id} {step.attempt}"] += 1
        if step.attempt < 3:
            raise OSError("not yet")
        return step.attempt

    async def book(self, connection: Any) -> str:
        return str(await connection.fetchval("SELECT 'booked'"))


@pytest.fixture
async def living(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Living)


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_a_run_continues_as_new_under_its_id_with_an_empty_journal(living, often):
    platform, process = living
    task = {"n": 1, "until": 4}
    if often == "straight":
        run_id = await platform.start_run("living", task)
        run = await until(platform, run_id, "completed", "failed", "blocked")
    else:
        with losing(process):
            run_id = await platform.start_run("living", task)
            run = await until(platform, run_id, "completed", "failed", "blocked")
    assert run["status"] == "completed", run["error"]
    assert run["output"]["n"] == 4
    began = run["output"]["began"]
    assert began == sorted(began)
    assert len(set(began)) == 3, "each life has a time of its own"
    assert {process.agent.ran[str(n)] for n in (1, 2, 3, 4)} == {1}


async def test_a_new_life_begins_like_a_run_that_nobody_has_claimed_yet(pool):
    await runs.accept(pool, [runs.new_start("r", "living", 1)])
    await pool.execute(
        "UPDATE runs SET status = 'running', process_id = 'p', attempts = 3, version = '1', source_hash = 'old', "
        "config_hash = 'h', config_revision = 1, started_at = now(), fair_rank = 7, dispatched_at = 'epoch'"
    )
    holder = SimpleNamespace(run_id="r", epoch=0)

    async def moved(move: Move) -> dict[str, Any]:
        await commit_moves(pool, [Entry(holder, move=move)], again=False)
        row = dict(await pool.fetchrow("SELECT *, dispatched_at > now() - interval '1 minute' AS fresh FROM runs"))
        await pool.execute("UPDATE runs SET status = 'running'")
        return row

    waiting = await moved(Move("waiting", waiting_signals="go"))
    kept = {"version": "1", "source_hash": "old", "config_hash": "h", "config_revision": 1, "fair_rank": 7}
    assert waiting.items() >= {**kept, "process_id": None, "attempts": 0, "fresh": False}.items()
    assert waiting["started_at"] is not None
    anew = await moved(Move("pending", task="2", base_seq=5))
    fresh = {**dict.fromkeys(kept), "fair_rank": 0, "started_at": None, "task": "2", "base_seq": 5}
    assert anew.items() >= {**fresh, "status": "pending", "process_id": None, "attempts": 0, "fresh": True}.items()


async def test_a_new_task_that_cannot_travel_fails_the_run(living):
    platform, _ = living
    run_id = await platform.start_run("living", {}, workflow="bad")
    run = await until(platform, run_id, "failed", "needs_review", "completed")
    assert (run["status"], run["error"]["type"]) == ("failed", "TypeError")


async def test_patched_keeps_old_runs_on_the_old_way_and_new_ones_on_the_new(living):
    platform, process = living
    try:
        old = await platform.start_run("living", {}, workflow="patched")
        await until(platform, old, "waiting")
        Living.patch = True
        new = await platform.start_run("living", {}, workflow="patched", run_id="new")
        await until(platform, new, "waiting")
        await signal(platform, old, "go")
        assert (await until(platform, old, "completed", "blocked"))["output"][0] == "old"
        with losing(process):
            await signal(platform, new, "go")
            assert (await until(platform, new, "completed", "blocked"))["output"] == ["booked", True]
            other = await platform.start_run("living", {}, workflow="patched")
            await signal(platform, other, "go")
            assert (await until(platform, other, "completed", "blocked"))["output"] == ["booked", True]
    finally:
        Living.patch = False


async def test_a_fork_repeats_nothing_before_its_step_and_everything_after(living):
    platform, process = living
    source = await platform.start_run("living", {}, workflow="forked")
    before = await until(platform, source, "completed")
    at_b = (await platform.request("run.fork", {"run_id": source, "step": "b"}))["run_id"]
    run = await until(platform, at_b, "completed", "blocked", "failed")
    assert run["output"] == ["a", "c", "b"], run["error"]
    assert process.agent.ran == {"a": 1, "c": 1, "b": 2}
    *copied, last = [(s["seq"], s["kind"], s["name"]) for s in before["steps"]]
    place = last[0]
    assert [(s["seq"], s["kind"], s["name"]) for s in run["steps"]] == [
        *copied,
        (place, "fork", source),
        (place + 1, "step", "b"),
    ]
    # Between the child's start and its end: the fork has a child of its own.
    ended = next(s["seq"] for s in before["steps"] if s["kind"] == "call" and s["status"] == "completed")
    in_between = (await platform.request("run.fork", {"run_id": source, "step": str(ended)}))["run_id"]
    assert (await until(platform, in_between, "completed", "blocked", "failed"))["output"] == ["a", "c", "b"]
    assert process.agent.ran == {"a": 1, "c": 2, "b": 3}
    assert (await platform.run(source))["steps"] == before["steps"]


@pytest.mark.parametrize("often", ["straight", "lost after each row"])
async def test_what_a_fork_draws_is_what_was_drawn_up_to_its_step_and_its_own_from_there(living, often):
    platform, process = living
    run_id = await platform.start_run("living", {}, workflow="chancy")
    drawn = (await until(platform, run_id, "completed"))["output"]

    async def forked(origin: str, step: str) -> tuple[str, list[Any]]:
        fork = (await platform.request("run.fork", {"run_id": origin, "step": step}))["run_id"]
        run = await until(platform, fork, "completed", "failed", "blocked")
        assert run["status"] == "completed", run["error"]
        return fork, run["output"]

    with losing(process) if often != "straight" else nullcontext():
        fork, again = await forked(run_id, "second")
        assert again[0] == drawn[0]
        assert again[1] != drawn[1], "two runs that go on from one place do not share what they draw"
        _, other = await forked(fork, "third")
        assert other[:2] == again[:2], "a fork of a fork knows both"
        assert other[2] != again[2]
        _, anew = await forked(run_id, "first")
        assert not {*anew[1:]} & {*drawn[1:]}


async def test_a_fork_of_a_run_that_continued_begins_in_its_newest_life(living):
    platform, process = living
    run_id = await platform.start_run("living", {"n": 1, "until": 3})
    await until(platform, run_id, "completed")
    fork = (await platform.request("run.fork", {"run_id": run_id, "step": "see"}))["run_id"]
    done = await until(platform, fork, "completed", "failed", "blocked")
    assert done["output"]["n"] == 3
    assert process.agent.ran["3"] == 1, "`count` stands before `see` in the newest life, too, and is not repeated"


async def test_the_step_that_a_fork_begins_at_has_all_its_attempts_again(living):
    platform, process = living
    run_id = await platform.start_run("living", {}, workflow="tried")
    assert (await until(platform, run_id, "completed"))["output"] == [3, 1]
    fork = (await platform.request("run.fork", {"run_id": run_id, "step": "try"}))["run_id"]
    assert (await until(platform, fork, "completed", "failed"))["output"] == [3, 1]
    assert [process.agent.ran[f"{fork} {attempt}"] for attempt in (1, 2, 3)] == [1, 1, 1]


async def test_a_failed_run_resumes_with_mended_code_and_repeats_nothing(living):
    platform, process = living
    run_id = await platform.start_run("living", {}, workflow="breaks")
    await until(platform, run_id, "failed")
    process.agent.broken = False
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == "mended"
    assert process.agent.ran["fine"] == 1
    assert Retry().max_attempts == 3
