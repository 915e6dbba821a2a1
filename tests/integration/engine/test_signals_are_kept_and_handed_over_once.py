from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, workflow
from perdure.engine.entries import Entry
from perdure.errors import Conflict, NotFound
from tests.engine_support import at_rest, lose, signal, until
from tests.platform import in_process
from tests.support import eventually


class Listening(BaseAgent):
    name = "listening"

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        if task.get("gate"):
            await ctx.wait_signal("gate")
        return [await ctx.wait_signal("go") for _ in range(task["take"])]

    @workflow
    async def timed(self, ctx: Context, task: dict) -> Any:
        try:
            await ctx.wait_signal("never", timeout=task["timeout"])
        except TimeoutError as error:
            first = str(error)
        await ctx.wait_signal("again")
        return first

    @workflow
    async def first(self, ctx: Context, task: dict) -> Any:
        if "timeout" in task:
            return await ctx.wait_signal("go", timeout=task["timeout"])
        name, _ = await ctx.select(late=ctx.sleep("patience", 600), went=ctx.wait_signal("go"))
        return name

    @workflow
    async def two(self, ctx: Context, task: dict) -> Any:
        return await ctx.gather(ctx.wait_signal("go"), ctx.wait_signal("go"), ctx.wait_signal("other"))


async def test_signals_come_first_in_first_out_whenever_they_were_sent(settings, nc):
    async with in_process(settings, nc) as platform:
        run_id = await platform.start_run("listening", {"take": 4})
        for n in (1, 2):  # the run is pending: there is no agent yet
            assert (await signal(platform, run_id, "go", n))["status"] == "pending"
        process = await platform.agent(Listening)
        await until(platform, run_id, "waiting")
        await at_rest(process)
        await signal(platform, run_id, "go", 3)
        await signal(platform, run_id, "go", 4)
        assert (await until(platform, run_id, "completed"))["output"] == [1, 2, 3, 4]


async def test_a_signal_with_an_id_counts_once(settings, nc):
    async with in_process(settings, nc, Listening) as platform:
        run_id = await platform.start_run("listening", {"take": 2, "gate": True})
        assert (await signal(platform, run_id, "go", "a", id="one"))["sent"] is True
        assert (await signal(platform, run_id, "go", "b", id="one"))["sent"] is False
        await signal(platform, run_id, "go", "c", id="two")
        await signal(platform, run_id, "gate")
        assert (await until(platform, run_id, "completed"))["output"] == ["a", "c"]


async def test_unknown_and_ended_runs_take_no_signal(settings, nc):
    async with in_process(settings, nc, Listening) as platform:
        run_id = await platform.start_run("listening", {"take": 0})
        await until(platform, run_id, "completed")
        with pytest.raises(Conflict, match="has ended completed"):
            await signal(platform, run_id, "go")
        with pytest.raises(NotFound):
            await signal(platform, "no-such-run", "go")


async def test_a_signal_that_is_sent_again_after_the_end_is_no_conflict(settings, nc):
    async with in_process(settings, nc, Listening) as platform:
        run_id = await platform.start_run("listening", {"take": 1})
        await signal(platform, run_id, "go", "a", id="one")
        await until(platform, run_id, "completed")
        again = await signal(platform, run_id, "go", "a", id="one")
        assert (again["status"], again["sent"]) == ("completed", False)
        with pytest.raises(Conflict, match="has ended completed"):
            await signal(platform, run_id, "go", "b", id="two")


async def test_a_time_out_is_journaled_and_the_same_on_replay(settings, nc):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Listening)
        runs = [await platform.start_run("listening", {"timeout": t}, workflow="timed") for t in (0.01, 0.5)]
        for run_id in runs:

            async def timed_out(run_id=run_id) -> bool:
                return (await platform.run(run_id))["waiting_for"] == ["again"]

            await eventually(timed_out)
            await signal(platform, run_id, "never", "too late")
            await at_rest(process)
            await signal(platform, run_id, "again")
            assert "was not there in time" in (await until(platform, run_id, "completed"))["output"]


async def test_two_waits_for_one_name_get_one_signal_each(settings, nc):
    async with in_process(settings, nc, Listening) as platform:
        run_id = await platform.start_run("listening", {}, workflow="two")
        await signal(platform, run_id, "go", 1)
        await signal(platform, run_id, "other", 3)
        await signal(platform, run_id, "go", 2)
        assert (await until(platform, run_id, "completed"))["output"] == [1, 2, 3]


async def test_a_signal_taken_in_a_life_that_was_lost_is_taken_again(settings, nc, monkeypatch):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Listening)
        run_id = await platform.start_run("listening", {"take": 1})
        await until(platform, run_id, "waiting")
        add = process.worker.journal.add
        lost: list[asyncio.Task[None]] = []

        def lose_the_first(entry: Entry) -> None:
            """The row that consumes the signal is never written: the process loses the run in that moment."""
            if entry.row is not None and entry.row.kind == "signal" and not lost:
                lost.append(asyncio.create_task(lose(process, entry.writer)))
            else:
                add(entry)

        monkeypatch.setattr(type(process.worker.journal), "add", lambda _self, entry: lose_the_first(entry))
        await signal(platform, run_id, "go", 1)
        assert (await until(platform, run_id, "completed"))["output"] == [1]
        assert lost


async def test_what_is_there_when_the_time_is_over_is_first(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        at_once = await platform.start_run("listening", {"timeout": 0}, workflow="first")
        await signal(platform, at_once, "go", "there")
        await platform.agent(Listening)
        assert (await until(platform, at_once, "completed", "failed"))["output"] == "there"

        for run_id, task in (("timed", {"timeout": 600}), ("chosen", {})):
            await platform.start_run("listening", task, workflow="first", run_id=run_id)
            await until(platform, run_id, "waiting")
        await platform.services.pop().stop()  # and nobody is there until their time is over
        for run_id in ("timed", "chosen"):
            await signal(platform, run_id, "go", "in time")
        await pool.execute("UPDATE journal SET due_at = now() WHERE due_at > now()")
        await platform.agent(Listening)
        assert (await until(platform, "timed", "completed", "failed"))["output"] == "in time"
        assert (await until(platform, "chosen", "completed", "failed"))["output"] == "went"
