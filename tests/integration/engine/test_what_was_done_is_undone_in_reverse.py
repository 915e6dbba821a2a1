from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, runs, workflow
from perdure.errors import Conflict, PermanentError
from perdure.store.queries import load_queries
from tests.engine_support import lose, losing, until
from tests.platform import in_process
from tests.support import eventually


class Travel(BaseAgent):
    name = "travel"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.log: list[str] = []
        self.failing: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        for what in ("flight", "hotel", "car"):
            await ctx.step(f"book {what}", self.book, what)
            ctx.on_failure(self.undo, what, name=f"unbook {what}", retry=Retry(max_attempts=2, delay=0.01))
        if task.get("waits"):
            await ctx.wait_signal("go")
        await ctx.step("pay", self.pay, task.get("pays", False), retry=Retry(max_attempts=1))
        return "travelling"

    @workflow
    async def branches(self, ctx: Context, task: dict) -> Any:
        async def one(what: str) -> None:
            await ctx.step(f"book {what}", self.book, what)
            ctx.on_failure(self.undo, what)

        await ctx.gather(one("a"), one("b"))
        raise PermanentError("no")

    @workflow
    async def anew(self, ctx: Context, task: dict) -> Any:
        ctx.on_failure(self.undo, "x")
        ctx.continue_as_new({})

    async def book(self, what: str) -> str:
        self.log.append(f"book {what}")
        return what

    async def undo(self, what: str) -> None:
        self.log.append(f"undo {what}")
        await self.hold.wait()
        if what in self.failing:
            raise OSError(f"{what} cannot be undone")

    async def pay(self, pays: bool) -> None:
        if not pays:
            raise PermanentError("no money")


BOOKED = ["book flight", "book hotel", "book car"]
UNDONE = ["undo car", "undo hotel", "undo flight"]


@pytest.fixture
async def travel(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Travel)


async def test_a_failed_run_undoes_the_last_first_and_says_so(travel):
    platform, process = travel
    run = await platform.run(await platform.start_run("travel", {}))
    run = await until(platform, run["run_id"], "failed")
    assert process.agent.log == [*BOOKED, *UNDONE]
    assert run["error"]["type"] == "StepFailed"
    assert run["error"]["undone"] == ["unbook car", "unbook hotel", "unbook flight"]
    assert [step["name"] for step in run["steps"] if step["kind"] == "undo"] == run["error"]["undone"]


async def test_what_is_not_undone_is_of_this_life_and_has_no_undo_that_went_well(pool):
    await runs.accept(pool, [runs.new_start("r", "travel", 1)])
    rows = [("1", "on_failure", "ok"), ("2", "on_failure", "ok"), ("3", "on_failure", "ok"), ("4", "step", "ok")]
    for seq, (path, kind, outcome) in enumerate([*rows, ("undo:3", "undo", "ok"), ("undo:2", "undo", "error")], 1):
        await pool.execute(
            "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, "
            "finished_at) VALUES ('r', $1, $2, $3, $2, '', $4, 1, 1, now(), now())",
            seq, path, kind, outcome,
        )  # fmt: skip
    left = load_queries("control.sql")["not_undone"]
    assert [row["name"] for row in await pool.fetch(left, "r")] == ["2", "1"]
    await pool.execute("UPDATE runs SET base_seq = 1")
    assert [row["name"] for row in await pool.fetch(left, "r")] == ["2"]


async def test_a_run_that_completes_undoes_nothing(travel):
    platform, process = travel
    run_id = await platform.start_run("travel", {"pays": True})
    await until(platform, run_id, "completed")
    assert process.agent.log == BOOKED


@pytest.mark.parametrize("when", ["waiting in memory", "out of memory"])
async def test_a_cancelled_run_undoes_too(travel, when):
    platform, process = travel
    process.worker.linger = 30.0 if when == "waiting in memory" else 0.0
    run_id = await platform.start_run("travel", {"waits": True})
    if when == "out of memory":
        await until(platform, run_id, "waiting")
    else:
        await eventually(lambda: process.agent.log == BOOKED and process.worker.executions[run_id].busy == 0)
    await platform.request("run.cancel", {"run_id": run_id})
    run = await until(platform, run_id, "cancelled", "failed")
    assert (run["status"], process.agent.log) == ("cancelled", [*BOOKED, *UNDONE])
    assert len(run["error"]["undone"]) == 3


async def test_a_waiting_run_with_something_to_undo_waits_for_a_process_to_undo_it(travel):
    platform, process = travel
    process.worker.linger = 0.0
    run_id = await platform.start_run("travel", {"waits": True})
    await until(platform, run_id, "waiting")
    await process.stop()
    assert (await platform.request("run.cancel", {"run_id": run_id}))["status"] == "pending"
    process = await platform.agent(Travel)
    await until(platform, run_id, "cancelled")
    assert process.agent.log == UNDONE


async def test_a_process_lost_after_each_row_repeats_no_undo_that_is_recorded(travel):
    platform, process = travel
    with losing(process) as losses:
        run_id = await platform.start_run("travel", {})
        run = await until(platform, run_id, "failed", "blocked", "needs_review", "completed", timeout=30)
    assert run["status"] == "failed", run["error"]
    assert len(losses) > 6
    assert process.agent.log == [*BOOKED, *UNDONE]


async def test_an_undo_that_was_under_way_when_its_process_was_lost_runs_again(travel):
    platform, process = travel
    process.agent.hold.clear()
    run_id = await platform.start_run("travel", {})
    await eventually(lambda: process.agent.log[-1:] == ["undo car"])
    await lose(process, process.worker.executions[run_id])
    await eventually(lambda: process.agent.log.count("undo car") == 2)
    process.agent.hold.set()
    await until(platform, run_id, "failed")
    assert process.agent.log == [*BOOKED, "undo car", *UNDONE]


async def test_a_cancellation_does_not_interrupt_the_undoing(travel):
    platform, process = travel
    process.worker.cancel_grace = 0.05
    process.agent.hold.clear()
    run_id = await platform.start_run("travel", {})
    await eventually(lambda: process.agent.log[-1:] == ["undo car"])
    await platform.request("run.cancel", {"run_id": run_id})
    await lose(process, process.worker.executions[run_id])
    await eventually(lambda: process.agent.log.count("undo car") == 2)
    process.agent.hold.set()
    run = await until(platform, run_id, "failed", "cancelled")
    assert process.agent.log == [*BOOKED, "undo car", *UNDONE]
    assert (run["status"], run["error"]["type"]) == ("failed", "StepFailed"), "it had failed before"


async def test_an_undo_that_fails_stops_the_undoing_and_is_tried_again_by_resume(travel):
    platform, process = travel
    process.agent.failing.add("hotel")
    run_id = await platform.start_run("travel", {})
    run = await until(platform, run_id, "failed")
    assert process.agent.log == [*BOOKED, "undo car", "undo hotel", "undo hotel"]
    assert run["error"]["undone"] == ["unbook car"]
    assert run["error"]["not_undone"] == ["unbook hotel", "unbook flight"]
    assert run["error"]["undo_error"]["cause"]["message"] == "hotel cannot be undone"
    process.agent.failing.clear()
    await platform.request("run.resume", {"run_id": run_id})
    run = await until(platform, run_id, "failed")
    assert process.agent.log[-2:] == ["undo hotel", "undo flight"]
    assert run["error"]["undone"] == ["unbook car", "unbook hotel", "unbook flight"]
    with pytest.raises(Conflict, match="was undone"):
        await platform.request("run.resume", {"run_id": run_id})


async def test_a_cancelled_run_whose_undo_failed_ends_failed_and_later_cancelled(travel):
    platform, process = travel
    process.agent.failing.add("car")
    run_id = await platform.start_run("travel", {"waits": True})
    await until(platform, run_id, "waiting")
    await platform.request("run.cancel", {"run_id": run_id, "reason": "enough"})
    run = await until(platform, run_id, "failed", "cancelled")
    assert (run["status"], run["error"]["type"], run["error"]["undone"]) == ("failed", "Cancelled", [])
    process.agent.failing.clear()
    await platform.request("run.resume", {"run_id": run_id})
    run = await until(platform, run_id, "cancelled")
    assert run["error"]["message"] == "enough"
    assert process.agent.log[-3:] == UNDONE


async def test_branches_are_undone_in_the_order_in_which_they_registered(travel):
    platform, process = travel
    with losing(process):
        run_id = await platform.start_run("travel", {}, workflow="branches")
        run = await until(platform, run_id, "failed", "blocked", "completed", timeout=30)
    assert run["status"] == "failed", run["error"]
    # A process may be lost by the commit of one row while the effect of the next has no row yet: that one runs again.
    assert set(process.agent.log) == {"book a", "book b", "undo a", "undo b"}
    rows = await process.worker.pool.fetch(
        "SELECT kind, path FROM journal WHERE run_id = $1 AND kind IN ('on_failure', 'undo') ORDER BY seq", run_id
    )
    registered = [row["path"] for row in rows if row["kind"] == "on_failure"]
    assert len(registered) == len(run["error"]["undone"]) == 2
    assert [row["path"] for row in rows if row["kind"] == "undo"] == [f"undo:{path}" for path in reversed(registered)]


async def test_code_that_does_not_give_way_ends_failed_and_says_what_was_not_undone(settings, nc):
    class Hangs(BaseAgent):
        name = "hangs"

        @workflow
        async def run(self, ctx: Context, task: Any) -> None:
            ctx.on_failure(print, "x", name="give back")
            await ctx.step("one", lambda: 1)
            await asyncio.Event().wait()

    async with in_process(settings, nc) as platform:
        process = await platform.agent(Hangs)
        process.worker.cancel_grace = 0.05
        run_id = await platform.start_run("hangs", {})
        await eventually(lambda: run_id in process.worker.executions and process.worker.executions[run_id].active)
        await eventually(lambda: process.worker.executions[run_id].last_seq == 2)
        await platform.request("run.cancel", {"run_id": run_id})
        run = await until(platform, run_id, "failed", "cancelled")
        assert (run["status"], run["error"]["not_undone"]) == ("failed", ["give back"])


async def test_what_cannot_be_registered_or_forgotten_is_misuse(travel):
    platform, _ = travel
    run_id = await platform.start_run("travel", {}, workflow="anew")
    run = await until(platform, run_id, "failed")
    assert "would forget" in run["error"]["message"]
