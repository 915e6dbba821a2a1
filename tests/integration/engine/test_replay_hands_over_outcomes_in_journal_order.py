from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, workflow
from perdure.errors import PermanentError, RunFailed, StepFailed
from tests.engine_support import at_rest, losing, losing_answers, signal, until
from tests.platform import in_process

AT_ONCE = Retry(max_attempts=3, delay=0.0)


class Everything(BaseAgent):
    """One of each thing that a workflow can do; the output says in which order its outcomes came."""

    name = "everything"
    ran: dict[str, int]

    @workflow
    async def run(self, ctx: Context, task: dict) -> dict:
        seen: list[Any] = []
        meetings: list[Any] = []  # in the order in which the branches saw them
        seen.append(await ctx.step("typed", self.echo, task["n"]))
        ctx.emit({"at": "start"})

        async def branch(name: str, steps: int) -> str:
            for n in range(steps):
                meetings.append(await ctx.step(f"{name}{n}", self.echo, f"{name}{n}"))
                await ctx.step("sees", self.echo, list(meetings))  # another order on replay is another argument
            return name

        seen.append(
            await ctx.gather(
                branch("a", 3), ctx.step("plain", self.echo, "plain"), branch("b", 2), ctx.gather(branch("c", 1))
            )
        )
        await ctx.step("met", self.echo, meetings)
        seen.append(await ctx.step("shaky", self.shaky, ctx.run_id, retry=AT_ONCE))
        for fn in (self.fails, self.unsendable):
            try:
                await ctx.step("fails", fn, retry=AT_ONCE)
            except (StepFailed, TypeError) as error:
                seen.append((type(error).__name__, str(error)))
        # As arguments these are part of each step's identity: another value on replay would stop the run as blocked.
        await ctx.step("chance", self.echo, [str(ctx.now()), str(ctx.uuid()), ctx.random(), ctx.patched("new")])
        await ctx.sleep("nap", 0.01)
        seen.append(await ctx.wait_signal("go"))
        try:
            await ctx.wait_signal("never", timeout=0.01)
        except TimeoutError:
            seen.append("timed out")
        seen.append(await ctx.call("everything", 4, workflow="child"))
        try:
            await ctx.call("everything", "bad", workflow="child")
        except RunFailed as error:
            seen.append((error.status, error.error["type"]))
        seen.append(await ctx.transaction("sum", self.book, 2, 3))
        seen.append((await ctx.start("everything", 1, workflow="child", run_id=f"{ctx.run_id}-free")).agent)
        seen.append((await ctx.adopt_config()).agent_name)
        return {"seen": seen, "met": sorted(meetings), "patched": ctx.patched("new")}

    @workflow
    async def child(self, ctx: Context, task: Any) -> Any:
        return await ctx.step("square", self.square, task)

    async def echo(self, value: Any) -> Any:
        await asyncio.sleep(0)
        return value

    async def shaky(self, run_id: str) -> int:
        tries = self.ran = getattr(self, "ran", {})
        tries[run_id] = tries.get(run_id, 0) + 1
        if tries[run_id] < 3:
            raise OSError("not yet")
        return tries[run_id]

    async def fails(self) -> None:
        raise PermanentError("it cannot be")

    async def unsendable(self) -> Any:
        return {"field": object()}

    async def book(self, connection: Any, one: int, two: int) -> int:
        return int(await connection.fetchval("SELECT $1::int + $2::int", one, two))

    async def square(self, n: Any) -> int:
        if not isinstance(n, int):
            raise PermanentError("not a number")
        return n * n


async def run_once(platform, run_id: str) -> Any:
    await platform.start_run("everything", {"n": 1}, run_id=run_id)
    await signal(platform, run_id, "go", {"payload": [1, None]})
    return await until(platform, run_id, "completed", "failed", "blocked", "needs_review", timeout=30)


async def paths(pool, run_id: str) -> list[tuple]:
    rows = await pool.fetch("SELECT seq, path, kind, outcome FROM journal WHERE run_id = $1 ORDER BY seq", run_id)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1)), "no seq is left out or used twice"
    ends = [row["path"] for row in rows if row["outcome"] != "open" and row["kind"] != "retry"]
    assert len(ends) == len(set(ends)), "each path has one outcome"
    return sorted((row["path"], row["kind"], row["outcome"]) for row in rows)


@pytest.fixture
async def everything(settings, nc):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Everything)
        process.worker.linger = 0.0  # no wait is kept in memory: each is a suspension
        yield platform, process


async def test_a_run_that_is_lost_after_each_of_its_rows_ends_as_one_that_is_never_lost(everything, pool):
    platform, process = everything
    straight = await run_once(platform, "straight")
    assert straight["status"] == "completed", straight["error"]
    with losing(process, only="lost") as losses:
        lost = await run_once(platform, "lost")
    assert lost["status"] == "completed", lost["error"]
    assert len(losses) > 25
    assert lost["output"] == straight["output"]
    assert await paths(pool, "lost") == await paths(pool, "straight")
    await at_rest(process)


async def test_a_run_is_exact_when_every_other_answer_of_the_database_is_lost(everything, pool):
    platform, process = everything
    straight = await run_once(platform, "straight")
    with losing_answers(process) as flaky:
        many = await asyncio.gather(*(run_once(platform, f"flaky-{n}") for n in range(3)))
    assert flaky.lost > 10
    for n, run in enumerate(many):
        assert run["status"] == "completed", run["error"]
        assert await paths(pool, f"flaky-{n}") == await paths(pool, "straight")
        assert run["output"] == straight["output"]
    await at_rest(process)
