"""terminate, restart, fork from any step, and one action on many runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from perdure import Client
from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.errors import InvalidRequest, NotFound, PermanentError
from perdure.store.queries import load_queries
from tests.engine_support import signal, until
from tests.platform import in_process
from tests.support import eventually

CONTROL = load_queries("control.sql")


class Steered(BaseAgent):
    name = "steered"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.ran: Counter[str] = Counter()
        self.stopped = 0
        self.broken = True

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        try:
            ctx.on_failure(self.note, "undone")
            await ctx.step("long", self.long)
        finally:
            await ctx.step("clean-up", self.note, "cleaned up")

    @workflow
    async def parent(self, ctx: Context, task: dict) -> Any:
        return await ctx.call("steered", {}, workflow="waits")

    @workflow
    async def waits(self, ctx: Context, task: dict) -> Any:
        return await ctx.wait_signal("go")

    @workflow
    async def tidies(self, ctx: Context, task: dict) -> Any:
        try:
            return await ctx.wait_signal("go")
        except asyncio.CancelledError:
            await ctx.step("clean-up", self.note, "cleaned up")
            raise

    @workflow
    async def branches(self, ctx: Context, task: dict) -> Any:
        async def branch(name: str) -> list[Any]:
            return [
                await ctx.step(f"{name}1", self.note, f"{name}1"),
                await ctx.step(f"{name}2", self.note, f"{name}2"),
            ]

        before = await ctx.step("before", self.note, "before")
        inside = await ctx.gather(branch("a"), branch("b"), ctx.step("c", self.note, "c"))
        return [before, *inside, await ctx.step("after", self.note, "after")]

    @workflow
    async def breaks(self, ctx: Context, task: dict) -> str:
        if self.broken:
            raise PermanentError("broken")
        return "mended"

    async def note(self, what: str) -> str:
        self.ran[what] += 1
        return what

    async def long(self) -> None:
        self.ran["long"] += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise


@pytest.fixture
async def steered(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Steered)


@pytest.fixture
async def client(settings):
    async with Client(settings) as client:
        yield client


async def test_terminate_ends_a_run_at_once_and_none_of_its_code_runs_any_more(steered):
    platform, process = steered
    run_id = await platform.start_run("steered", {})
    await eventually(lambda: process.agent.ran["long"] and process.worker.journal.idle)
    run = await platform.request("run.terminate", {"run_id": run_id, "reason": "enough"})
    assert (run["status"], run["error"]) == (
        "cancelled",
        {"type": "Terminated", "message": "enough", "not_undone": ["note"]},
    )
    await eventually(lambda: process.agent.stopped and not process.worker.executions, message="its step was stopped")
    assert process.agent.ran == {"long": 1}
    again = await platform.request("run.terminate", {"run_id": run_id, "reason": "twice"})
    assert again["error"]["message"] == "enough"
    with pytest.raises(NotFound, match="to terminate"):
        await platform.request("run.terminate", {"run_id": "nothing"})


async def test_terminate_reaches_the_children(steered):
    platform, _ = steered
    run_id = await platform.start_run("steered", {}, workflow="parent")
    await until(platform, run_id, "waiting")
    (child,) = (await platform.request("run.list", {"parent_run_id": run_id}))["runs"]
    await until(platform, child["run_id"], "waiting")
    await platform.request("run.terminate", {"run_id": run_id})
    assert (await platform.run(child["run_id"]))["error"]["type"] == "Terminated"


async def test_a_waiting_run_is_cancelled_by_its_own_code_which_tidies_up(steered):
    platform, process = steered
    run_id = await platform.start_run("steered", {}, workflow="tidies")
    await until(platform, run_id, "waiting")
    await platform.request("run.cancel", {"run_id": run_id, "reason": "enough"})
    run = await until(platform, run_id, "cancelled")
    assert run["error"]["message"] == "enough"
    assert process.agent.ran == {"cleaned up": 1}


async def test_a_restart_is_a_new_run_with_the_same_task_that_names_the_old_one(steered):
    platform, process = steered
    run_id = await platform.start_run("steered", {"n": 1}, workflow="breaks")
    await until(platform, run_id, "failed")
    process.agent.broken = False
    said = {"run_id": run_id, "new_run_id": "again"}
    new = await platform.request("run.restart", said)
    assert (new["run_id"], new["task"], new["origin_run_id"], new["origin_kind"]) == (
        "again",
        {"n": 1},
        run_id,
        "restart",
    )
    assert (await until(platform, "again", "completed"))["output"] == "mended"
    assert (await platform.request("run.restart", said))["status"] == "completed", "the same again is the same run"
    assert (await platform.run(run_id))["status"] == "failed", "the old one stays"
    with pytest.raises(NotFound, match="to restart"):
        await platform.request("run.restart", {"run_id": "nothing"})


async def test_a_run_is_forked_from_any_step_also_inside_branches(steered):
    platform, process = steered
    source = await platform.start_run("steered", {}, workflow="branches")
    run = await until(platform, source, "completed")
    steps = [step for step in run["steps"] if step["kind"] == "step"]
    assert len(steps) == 7
    for place, step in enumerate(steps):
        process.agent.ran.clear()
        forked = (await platform.request("run.fork", {"run_id": source, "step": str(step["seq"])}))["run_id"]
        copy = await until(platform, forked, "completed", "blocked", "failed", "needs_review")
        assert (copy["status"], copy["output"]) == ("completed", run["output"]), copy["error"]
        assert process.agent.ran == {each["name"]: 1 for each in steps[place:]}, "what stands before is not repeated"
        assert copy["origin_run_id"] == source


async def test_a_step_is_found_by_its_name_its_seq_or_its_path_and_is_no_row_of_the_engines_own(pool):
    await runs.accept(pool, [runs.new_start("r", "steered", 1)])
    rows = [("1", "retry", "a"), ("1", "step", "a"), ("c", "config", "b"), ("2", "step", "b"), ("3", "step", "2")]
    for seq, (path, kind, name) in enumerate(rows, start=1):
        await pool.execute(
            "INSERT INTO journal (run_id, seq, path, kind, name, hash, outcome, attempt, epoch, started_at, "
            "finished_at) VALUES ('r', $1, $2, $3, $4, '', 'ok', 1, 1, now(), now())",
            seq, path, kind, name,
        )  # fmt: skip
    found = {what: await pool.fetchval(CONTROL["step_seq"], "r", what) for what in ("a", "b", "2", "4", "3", "9")}
    assert found == {"a": 2, "b": 4, "2": 5, "4": 4, "3": 5, "9": None}


async def test_one_action_reaches_every_run_of_a_filter_page_by_page_and_no_other(steered, client):
    platform, _ = steered
    chosen = [await platform.start_run("steered", {"n": n}, workflow="waits") for n in range(7)]
    other = await platform.start_run("steered", {}, workflow="tidies")
    elsewhere = await platform.start_run("nobody", {})
    for run_id in (*chosen, other):
        await until(platform, run_id, "waiting")
    wanted = {"agent": "steered", "workflow": "waits"}
    count = await client.count("pause", **wanted)
    assert (count.matched, count.more) == (7, False)
    late = await platform.start_run("steered", {}, workflow="waits")
    pages = [page async for page in client.bulk("pause", page=3, cursor=count.cursor, **wanted)]
    assert [page.done for page in pages] == [3, 3, 1]
    assert {(await platform.run(run_id))["status"] for run_id in chosen} == {"paused"}
    assert (await until(platform, late, "waiting"))["status"] == "waiting", "it came after the count"
    assert (await platform.run(other))["status"] == "waiting"
    assert (await platform.run(elsewhere))["status"] == "pending"

    resumed = [page async for page in client.bulk("resume", status="paused", agent="steered")]
    assert sum(page.done for page in resumed) == 7
    for run_id in chosen:
        await signal(platform, run_id, "go", 1)
    for run_id in chosen:
        await until(platform, run_id, "completed")
    ended = [page async for page in client.bulk("terminate", all=True, reason="closing")]
    assert sum(page.done for page in ended) == 3, "only those that had not ended"


async def test_a_page_that_is_asked_for_again_restarts_nothing_twice(steered, client):
    platform, process = steered
    run_id = await platform.start_run("steered", {}, workflow="breaks")
    await until(platform, run_id, "failed")
    process.agent.broken = False
    count = await client.count("restart", status="failed")
    for _ in range(2):
        assert [page.done async for page in client.bulk("restart", status="failed", cursor=count.cursor)] == [1]
    assert len((await platform.request("run.list", {"agent": "steered"}))["runs"]) == 2


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"action": "cancel"}, "filter"),
        ({"action": "resume", "filter": {"agent": "a"}}, "filter.status"),
        ({"action": "restart", "all": True}, "filter.status"),
        ({"action": "cancel", "filter": {"statuses": "failed"}}, "filter.statuses"),
        ({"action": "cancel", "filter": {"status": "lost"}}, "filter.status"),
        ({"action": "cancel", "filter": {"created_before": "2026-01-01T00:00:00"}}, "filter.created_before"),
        ({"action": "burn", "all": True}, "action"),
        ({"action": "cancel", "filter": {"status": []}}, "filter.status"),
        ({"action": "cancel", "all": True, "cursor": "x"}, "cursor"),
        ({"action": "cancel", "all": True, "cursor": f"1-{2**70}"}, "cursor"),
    ],
)
async def test_a_filter_that_says_too_little_or_nonsense_is_refused_by_its_field(steered, said, named):
    platform, _ = steered
    with pytest.raises(InvalidRequest, match=f"'{named}"):
        await platform.request("run.bulk", said)
