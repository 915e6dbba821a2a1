from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, points, workflow
from perdure.errors import Conflict
from services.scheduler.queues import Queues
from services.scheduler.service import Scheduler
from services.scheduler.sweeper import Sweeper
from tests.agents.queued import INSIDE_TABLE, Queued
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.queue_support import open_gate

START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    """The time of a scheduler, set by the test."""

    def __init__(self):
        self.moment = START

    def now(self):
        return self.moment


@pytest.fixture(autouse=True)
async def table(pool):
    await pool.execute(INSIDE_TABLE)


async def test_a_start_with_a_held_key_is_the_run_that_holds_it_until_its_end(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "second"})))
        starts = [platform.start_run("queued", {"n": n, "gate": "open"}, dedup_key="k") for n in range(20)]
        [run_id] = set(await asyncio.gather(*starts))
        assert await platform.start_run("queued", {}, dedup_key="other") != run_id
        assert await platform.start_run("queued", {}, dedup_key="k", workflow="nap") != run_id
        asked = asyncio.create_task(platform.ask("queued", {"n": 99}, dedup_key="k"))
        await until(platform, run_id, "running")
        await open_gate(pool)
        assert (await asked)["run_id"] == run_id
        again = await platform.ask("queued", {"n": 5}, dedup_key="k")
        assert again["run_id"] != run_id, "the key is free again"
        assert again["output"] == 5
        for gate in ("second", "third", "fourth"):  # many who find it free at once
            starts = [platform.start_run("queued", {"n": at, "gate": gate}, dedup_key="k") for at in range(20)]
            [run_id] = set(await asyncio.gather(*starts))
            await open_gate(pool, gate)
            await until(platform, run_id, "completed")
    assert await pool.fetchval("SELECT count(*) FROM runs") == 7


async def test_a_key_with_a_window_is_held_for_it_and_no_longer(settings, nc, pool):
    clock = Clock()
    async with in_process(settings, nc, Queued) as platform:
        platform.services[1]._clock = clock
        await platform.services[1].stop()
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "timed"}), clock=clock))
        first = await platform.ask("queued", {"n": 1}, dedup_key="k", dedup_window=60)
        clock.moment = START + timedelta(seconds=59)
        again = await platform.ask("queued", {"n": 2}, dedup_key="k", dedup_window=60)
        assert (again["run_id"], again["output"]) == (first["run_id"], 1)
        clock.moment = START + timedelta(seconds=60)
        third = await platform.ask("queued", {"n": 3}, dedup_key="k", dedup_window=60)
        assert third["output"] == 3


async def test_the_same_run_id_again_is_the_same_run_with_its_key_and_another_task_is_a_conflict(settings, nc, pool):
    async with in_process(settings, nc, Queued) as platform:
        for _ in range(2):
            assert await platform.start_run("queued", {"n": 1}, run_id="mine", dedup_key="k") == "mine"
        await until(platform, "mine", "completed")
        with pytest.raises(Conflict):
            await platform.start_run("queued", {"n": 2}, run_id="mine", dedup_key="k")
        assert await platform.start_run("queued", {"n": 3}, dedup_key="k") != "mine", "a conflict takes no key"


async def test_debounced_starts_become_one_run_with_the_newest_task_and_a_bound(settings, nc, pool):
    clock = Clock()
    async with in_process(settings, nc, Queued) as platform:
        await platform.services[1].stop()
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "timed"}), clock=clock))
        ids = set()
        for n in range(5):  # one every 4 s: each puts the run off by 5 s, up to 15 s after the first
            clock.moment = START + timedelta(seconds=4 * n)
            said = {"debounce_key": "k", "debounce": 5, "debounce_max": 15}
            run_id = await platform.start_run("queued", {"n": n}, **said)
            ids.add(run_id)
            if n == 3:
                run = await platform.run(run_id)
                assert run["status"] == "waiting"
                assert run["reason"]["code"] == "waiting_for_time"
                assert run["wake_at"] == (START + timedelta(seconds=15)).isoformat()
                clock.moment = START + timedelta(seconds=15)
                assert (await until(platform, run_id, "completed"))["output"] == 3
        assert len(ids) == 2, "the one that came after the run had begun is the first of the next"
        clock.moment = START + timedelta(seconds=16 + 5)
        assert (await until(platform, run_id, "completed"))["output"] == 4


async def test_a_delayed_run_begins_at_its_time(settings, nc, pool):
    clock = Clock()
    async with in_process(settings, nc, Queued) as platform:
        await platform.services[1].stop()
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "timed"}), clock=clock))
        sweeper = Sweeper(pool, nc, settings, clock)
        later = await platform.start_run("queued", {"n": 1}, delay=30)
        queued = await platform.start_run(
            "queued", {"n": 2}, queue="line", start_at=(START + timedelta(seconds=40)).isoformat()
        )
        past = await platform.start_run("queued", {"n": 3}, start_at="2029-12-31T23:00:00+00:00")
        await until(platform, past, "completed")
        clock.moment = START + timedelta(seconds=29.9)
        assert await sweeper.wake_due() == 0
        assert (await platform.run(later))["status"] == "waiting"
        [line] = (await platform.request("queue.list", {"queue": "line"}))["queues"]
        assert (line["delayed"], line["pending"]) == (1, 0)
        clock.moment = START + timedelta(seconds=30)
        await until(platform, later, "completed")
        assert (await platform.run(queued))["status"] == "waiting"
        clock.moment = START + timedelta(seconds=40)
        await until(platform, queued, "completed")


async def test_keys_that_nobody_needs_are_forgotten(settings, nc, pool):
    clock = Clock()
    async with in_process(settings, nc, Queued) as platform:
        await platform.services[1].stop()
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "timed"}), clock=clock))
        await platform.ask("queued", {}, dedup_key="over")
        held = await platform.start_run("queued", {"gate": "open"}, dedup_key="held")
        await platform.ask("queued", {}, dedup_key="window", dedup_window=7200)
        clock.moment = START + timedelta(seconds=3601)
        await Queues(pool, nc, clock).forget_keys()
        left = {row["start_key"] for row in await pool.fetch("SELECT start_key FROM start_keys")}
        assert left == {"run\nheld", "run\nwindow"}
        assert await platform.start_run("queued", {}, dedup_key="held") == held
        await open_gate(pool)
        await until(platform, held, "completed")


class Keyed(BaseAgent):
    """Starts runs of its own under keys."""

    name = "keyed"

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        child = await ctx.start("keyed", task["n"], workflow="echo", **task["options"])
        await ctx.step("after", self.after)
        return child.run_id

    @workflow
    async def calls(self, ctx: Context, task: Any) -> Any:
        return await ctx.gather(
            ctx.call("keyed", task["n"], workflow="waits", dedup_key="c"),
            ctx.call("keyed", task["n"] + 1, workflow="waits", dedup_key="c", timeout=3600),
        )

    @workflow
    async def echo(self, ctx: Context, task: Any) -> Any:
        return task

    @workflow
    async def waits(self, ctx: Context, task: Any) -> Any:
        return [task, await ctx.wait_signal("go")]

    async def after(self) -> None: ...


async def test_a_workflow_starts_under_a_key_as_any_other_caller_does(settings, nc, pool):
    async with in_process(settings, nc, Keyed) as platform:
        held = await platform.start_run("keyed", 0, workflow="waits", dedup_key="k")
        first = {"n": 1, "options": {"dedup_key": "k"}}
        assert (await platform.ask("keyed", first))["output"] != held, "a key is of a workflow"
        options = {"debounce_key": "d", "debounce": 60, "debounce_max": 3600}
        [once] = {(await platform.ask("keyed", {"n": n, "options": options}))["output"] for n in range(3)}
        run = await platform.run(once)
        assert (run["status"], run["task"]) == ("waiting", 2)
        free = (await platform.ask("keyed", {"n": 5, "options": {"dedup_key": "free", "priority": 3}}))["output"]
        assert (await until(platform, free, "completed"))["output"] == 5


async def test_a_workflow_waits_for_the_run_that_has_the_key_and_does_not_own_it(settings, nc, pool):
    async with in_process(settings, nc, Keyed) as platform:
        held = await platform.start_run("keyed", 0, workflow="waits", dedup_key="c")
        for run_id in ("one", "two", "leaves"):
            await platform.start_run("keyed", {"n": 7}, workflow="calls", run_id=run_id)
            await until(platform, run_id, "waiting")
        await platform.request("run.cancel", {"run_id": "leaves"})
        await until(platform, "leaves", "cancelled")
        assert (await platform.run(held))["status"] == "waiting", "it is nobody's child"
        await signal(platform, held, "go", "now")
        for run_id in ("one", "two"):
            assert (await until(platform, run_id, "completed"))["output"] == [[0, "now"]] * 2
    assert await pool.fetchval("SELECT count(*) FROM runs WHERE workflow = 'waits'") == 1


async def test_a_key_that_a_workflow_takes_is_committed_with_its_row_or_not_at_all(settings, nc, pool):
    struck: list[str] = []

    def fail_once(point: str, run_id: str, _name: str) -> None:
        if point == "transaction.written" and not struck:
            struck.append(run_id)
            raise RuntimeError("between the key and the commit")

    async with in_process(settings, nc, Keyed) as platform:
        remove = points.install(fail_once)
        try:
            run = await platform.ask("keyed", {"n": 1, "options": {"dedup_key": "k"}}, run_id="r")
        finally:
            remove()
        assert struck == ["r"]
        assert (await until(platform, run["output"], "completed"))["output"] == 1
        assert await pool.fetchval("SELECT count(*) FROM runs WHERE workflow = 'echo'") == 1
