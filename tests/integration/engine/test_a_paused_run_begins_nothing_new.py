from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.bus import wire
from perdure.engine import Context, Retry, control, runs, workflow
from perdure.engine.commits import commit_moves
from perdure.engine.entries import Entry
from perdure.engine.rows import Move
from perdure.errors import Conflict
from perdure.store.queries import load_queries
from tests.engine_support import lose, signal, until
from tests.platform import in_process
from tests.support import eventually

ENGINE = load_queries("engine.sql")


class Patient(BaseAgent):
    name = "patient"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ran: Counter[str] = Counter()
        self.inside: set[str] = set()
        self.go = asyncio.Event()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        first = await ctx.step("first", self.work, "first")
        return [first, await ctx.step("second", self.work, "second")]

    @workflow
    async def branches(self, ctx: Context, task: dict) -> Any:
        async def branch(name: str) -> list[str]:
            return [await ctx.step(name, self.work, name), await ctx.step("after", self.work, f"after {name}")]

        return await ctx.gather(branch("a"), branch("b"))

    @workflow
    async def waits(self, ctx: Context, task: dict) -> Any:
        first = await ctx.wait_signal("go")
        return [first, await ctx.wait_signal("go")]

    @workflow
    async def sleeps(self, ctx: Context, task: dict) -> str:
        await ctx.sleep("nap", 1.5)  # well past the time that a run lingers in memory
        return "slept"

    @workflow
    async def again(self, ctx: Context, task: dict) -> str:
        return await ctx.step("fails", self.fails, retry=Retry(max_attempts=5, delay=0.05, jitter=False))

    async def work(self, name: str) -> str:
        self.ran[name] += 1
        self.inside.add(name)
        await self.go.wait()
        return name

    async def fails(self) -> str:
        self.ran["fails"] += 1
        await self.go.wait()
        if self.ran["fails"] == 1:
            raise OSError("not yet")
        return "done"


@pytest.fixture
async def patient(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Patient)


async def pause(platform, run_id: str) -> dict[str, Any]:
    return await platform.request("run.pause", {"run_id": run_id})


async def paused(platform, run_id: str) -> dict[str, Any]:
    return await until(platform, run_id, "paused", "completed", "failed")


async def test_the_step_under_way_ends_and_is_kept_and_the_next_does_not_begin(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {})
    await eventually(lambda: process.agent.inside == {"first"})
    assert (await pause(platform, run_id))["status"] == "running"
    process.agent.go.set()
    run = await paused(platform, run_id)
    assert run["status"] == "paused"
    assert [step["name"] for step in run["steps"]] == ["first"]
    await eventually(lambda: not process.worker.executions, message="it has left memory")
    assert (await pause(platform, run_id))["status"] == "paused", "once more is the same"
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == ["first", "second"]
    assert process.agent.ran == {"first": 1, "second": 1}


async def test_all_branches_end_their_steps_before_the_run_is_paused(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {}, workflow="branches")
    await eventually(lambda: process.agent.inside == {"a", "b"})
    await pause(platform, run_id)
    process.agent.go.set()
    assert {step["name"] for step in (await paused(platform, run_id))["steps"]} == {"a", "b"}
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == [["a", "after a"], ["b", "after b"]]
    assert set(process.agent.ran.values()) == {1}


async def test_a_failed_try_is_not_repeated_while_the_run_is_paused(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {}, workflow="again")
    await eventually(lambda: process.agent.ran["fails"] == 1)
    await pause(platform, run_id)
    process.agent.go.set()
    await paused(platform, run_id)
    assert process.agent.ran["fails"] == 1
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == "done"


async def test_signals_that_come_meanwhile_are_kept_in_their_order(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {}, workflow="waits")
    await until(platform, run_id, "waiting")
    assert (await pause(platform, run_id))["status"] == "paused"
    for payload in (1, 2):
        await signal(platform, run_id, "go", payload)
    assert (await platform.run(run_id))["status"] == "paused"
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == [1, 2]
    assert process.worker.fences == 0


async def test_a_timer_that_is_due_meanwhile_does_not_wake_it(patient, pool):
    platform, _ = patient
    run_id = await platform.start_run("patient", {}, workflow="sleeps")
    await until(platform, run_id, "waiting")
    await pause(platform, run_id)
    await eventually(lambda: pool.fetchval("SELECT due_at < clock_timestamp() FROM journal WHERE kind = 'sleep'"))
    assert await platform.services[1]._sweeper.wake_due() == 0
    assert (await platform.run(run_id))["status"] == "paused"
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == "slept"


async def test_a_lost_process_does_not_make_a_run_forget_that_it_is_to_pause(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {})
    await eventually(lambda: process.agent.inside == {"first"})
    await pause(platform, run_id)
    await lose(process, process.worker.executions[run_id])
    assert (await paused(platform, run_id))["status"] == "paused"
    process.agent.go.set()
    await platform.request("run.resume", {"run_id": run_id})
    assert (await until(platform, run_id, "completed"))["output"] == ["first", "second"]


async def test_resume_before_the_pause_is_there_takes_it_back(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {})
    await eventually(lambda: process.agent.inside == {"first"})
    await pause(platform, run_id)
    assert (await platform.request("run.resume", {"run_id": run_id}))["status"] == "running"
    process.agent.go.set()
    assert (await until(platform, run_id, "completed"))["output"] == ["first", "second"]


@pytest.mark.parametrize("to", ["waiting", "pending"])
async def test_a_run_that_was_asked_to_pause_goes_nowhere_else_but_to_an_end(pool, nc, to):
    """It was on its way to a wait, or to its next life, when somebody asked."""
    await runs.accept(pool, [runs.new_start("r", "patient", 1)])
    await pool.execute("UPDATE runs SET status = 'running'")
    holder = SimpleNamespace(run_id="r", epoch=0)
    move = Move(to, waiting_signals="go") if to == "waiting" else Move(to, task="2", base_seq=1)
    assert (await control.pause(pool, nc, "r"))["way"] == "asked"
    entry = Entry(holder, move=move)
    await commit_moves(pool, [entry], again=False)
    assert (await pool.fetchval("SELECT status FROM runs"), entry.woken) == ("paused", False)
    await control.resume(pool, nc, "r")
    assert await pool.fetchval("SELECT status FROM runs") == "pending"


async def test_a_run_that_was_asked_to_pause_is_paused_when_its_process_is_lost(pool, nc):
    await runs.accept(pool, [runs.new_start("r", "patient", 1)])
    await pool.execute("UPDATE runs SET status = 'running', process_id = 'p'")
    await control.pause(pool, nc, "r")
    await pool.fetch(ENGINE["requeue_lost"], "p", 9, 10)
    assert await pool.fetchval("SELECT status FROM runs") == "paused"


@pytest.mark.parametrize("then", ["cancel", "resume"])
async def test_what_was_asked_while_a_run_was_on_its_way_to_its_pause_is_done(pool, nc, then):
    await runs.accept(pool, [runs.new_start("r", "patient", 1)])
    await pool.execute("UPDATE runs SET status = 'running', epoch = 1")
    await control.pause(pool, nc, "r")
    await (control.cancel(pool, nc, "r", "enough") if then == "cancel" else control.resume(pool, nc, "r"))
    entry = Entry(SimpleNamespace(run_id="r", epoch=1), move=Move("paused"))  # it has not heard of that
    await commit_moves(pool, [entry], again=False)
    assert (await pool.fetchval("SELECT status FROM runs"), entry.woken) == ("pending", True)


async def test_a_pause_is_told_after_all_that_was_told_before(pool, nc):
    await runs.accept(pool, [runs.new_start("r", "patient", 1)])
    for changed, seq in (("base_seq = 7", 7), ("seq_floor = 9", 9)):
        await pool.execute(f"UPDATE runs SET status = 'waiting', {changed}")
        assert (await control.pause(pool, nc, "r"))["last_seq"] == seq


async def test_one_that_is_being_cancelled_is_not_paused(pool, nc):
    await runs.accept(pool, [runs.new_start("r", "patient", 1)])
    await pool.execute("UPDATE runs SET status = 'running', cancel_reason = 'enough'")
    with pytest.raises(Conflict, match="is being cancelled"):
        await control.pause(pool, nc, "r")
    assert await pool.fetchval("SELECT pause_asked FROM runs") is False


async def test_cancel_is_stronger_than_pause(patient):
    platform, process = patient
    run_id = await platform.start_run("patient", {})
    await eventually(lambda: process.agent.inside == {"first"})
    await pause(platform, run_id)
    await platform.request("run.cancel", {"run_id": run_id})
    await until(platform, run_id, "cancelled", timeout=2.0)
    waiting = await platform.start_run("patient", {}, workflow="waits")
    await until(platform, waiting, "waiting")
    await pause(platform, waiting)
    await platform.request("run.cancel", {"run_id": waiting})
    await until(platform, waiting, "cancelled", timeout=2.0)
    assert process.agent.ran["second"] == 0


async def test_what_cannot_be_paused_is_told_so(patient):
    platform, process = patient
    process.agent.go.set()
    run_id = await platform.start_run("patient", {})
    await until(platform, run_id, "completed")
    with pytest.raises(Conflict, match="is completed"):
        await pause(platform, run_id)
    pending = await platform.start_run("nobody", {})
    assert (await pause(platform, pending))["status"] == "paused"
    assert (await wire.request(platform.nc, "run.list", {"status": "paused"}))["runs"][0]["run_id"] == pending


async def test_a_pause_is_an_event(patient, nc):
    platform, process = patient
    run_id = await platform.start_run("patient", {})
    events = await nc.subscribe(f"run.events.{run_id}")
    await eventually(lambda: process.agent.inside == {"first"})
    await pause(platform, run_id)
    process.agent.go.set()
    await paused(platform, run_id)
    kinds = [orjson.loads(message.data)["type"] async for message in _until_type(events, b"run.paused")]
    assert kinds[-1] == "run.paused"


async def _until_type(subscription, kind: bytes):
    while True:
        message = await subscription.next_msg(timeout=5)
        yield message
        if kind in message.data:
            return
