"""The crash matrix: at each named point the process is killed once; the journal and the ledger are as without it.

Each step leaves a line in the ledger before it returns. A step is repeated only if its process was lost between that
line and the commit of its row; for those points a second line must be there, for all others none may be.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, StepContext, points, workflow
from perdure.errors import Conflict
from tests.crash_support import Kill, Rig, crash_rig
from tests.support import eventually

TABLES = """
CREATE TABLE lines (run_id text, step text);
CREATE TABLE booked (run_id text);
"""
STOPPED = ("completed", "failed", "cancelled", "dead", "blocked", "needs_review")


class Matrix(BaseAgent):
    """One of each thing that comes by a point."""

    name = "matrix"

    @workflow
    async def run(self, ctx: Context, task: dict) -> list[Any]:
        seen = [await ctx.step("one", self.write, "one")]
        seen.append(ctx.patched("new way"))
        seen += await ctx.gather(*(ctx.step(name, self.write, name) for name in ("left", "right")))
        seen.append(await ctx.step("shaky", self.shaky, retry=Retry(max_attempts=3, delay=0.01)))
        await ctx.sleep("short", 0.02)
        seen.append(await ctx.transaction("book", self.book, ctx.run_id))
        seen.append(await ctx.call("matrix", task, workflow="child", run_id=f"{ctx.run_id}-child"))
        await ctx.start("matrix", task, workflow="child", run_id=f"{ctx.run_id}-free")
        seen.append(await ctx.wait_signal("go"))
        await ctx.sleep("long", 0.15)
        await ctx.adopt_config()
        await ctx.step("last", self.write, "last")
        ctx.emit({"said": "nobody waits for this row"})
        return seen

    @workflow
    async def child(self, ctx: Context, task: dict) -> str:
        return await ctx.step("child", self.write, "child")

    @workflow
    async def lives(self, ctx: Context, task: int) -> int:
        await ctx.step("life", self.write, f"life {task}")
        if task < 2:
            ctx.continue_as_new(task + 1)
        return task

    @workflow
    async def stays(self, ctx: Context, task: dict) -> str:
        await ctx.step("one", self.write, "one")
        try:
            await ctx.step("hangs", self.hang)
        finally:
            await ctx.step("tidy", self.write, "tidy")
        return "never"

    @workflow
    async def fails(self, ctx: Context, task: dict) -> str:
        await ctx.step("one", self.write, "one")
        return await ctx.step("once", self.fail_once, retry=Retry(max_attempts=1))

    @workflow
    async def plain(self, ctx: Context, task: dict) -> list[str]:
        return [await ctx.step(name, self.write, name) for name in ("one", "last")]

    async def write(self, line: str, step: StepContext) -> str:
        await self.resources.pool.execute("INSERT INTO lines VALUES ($1, $2)", step.run_id, line)
        return line

    async def shaky(self, step: StepContext) -> str:
        await self.write(f"shaky {step.attempt}", step)
        if step.attempt == 1:
            raise OSError("not yet")
        return "shaky"

    async def fail_once(self, step: StepContext) -> str:
        await self.write("once", step)
        if await self.resources.pool.fetchval("SELECT count(*) FROM lines WHERE run_id = $1", step.run_id) < 3:
            raise ValueError("the first time")
        return "once"

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def book(self, connection: Any, run_id: str) -> int:
        await connection.execute("INSERT INTO booked VALUES ($1)", run_id)
        return 1


WORKFLOWS = {"lives": "lives", "cancel": "stays", "resume": "fails", "fork": "plain", "schedule": "plain"}
LINES = Counter(["one", "left", "right", "shaky 1", "shaky 2", "last"])


@dataclass(frozen=True)
class Case:
    """What is killed and what must have been done twice: lines of the ledger, and attempts whose work was undone."""

    of: str  # the workflow or the request in which the point is reached
    name: str = ""  # the step, signal or child at which the kill strikes, where the point has one
    again: str = ""  # the line that must be there twice
    tried: str = ""  # the step that must have begun twice, without a second line


AGENT = {
    "claim.before": Case("run"),
    "claim.after": Case("run"),
    "claim.begun": Case("run"),
    "step.before": Case("run", "last", tried="last"),
    "step.after_effect": Case("run", "one", again="one"),
    "step.failed": Case("run", "shaky", again="shaky 1"),
    "step.before_commit": Case("run", "last", again="last"),
    "step.after_commit": Case("run", "one"),
    "transaction.written": Case("run", "book", tried="book"),
    "patch.before": Case("run"),
    "config.before": Case("run"),
    "signal.taken": Case("run", "go"),
    "timer.due": Case("run", "short"),
    "child.ended": Case("run"),
    "cancel.heard": Case("cancel"),
    "commit.before": Case("run", again="one"),
    "commit.rows": Case("run"),
    "commit.written": Case("run"),
    "commit.after": Case("run"),
    "commit.between": Case("run"),
    "move.before": Case("run"),
    "move.written": Case("run"),
    "move.after": Case("run"),
    "wait.before": Case("run"),
    "wait.after": Case("run"),
    "end.before": Case("run"),
    "end.after": Case("run"),
    "continue.before": Case("lives"),
    "events.before": Case("run"),
    "children.started": Case("run"),
    "parents.before": Case("run"),
    "parents.after": Case("run"),
    "release.before": Case("drain"),
    "release.after": Case("drain"),
}
SCHEDULER = {
    "accept.before": Case("run"),
    "accept.after": Case("run"),
    "task.before": Case("task"),
    "task.after": Case("task"),
    "bury.before": Case("loss"),
    "bury.after": Case("loss"),
    "requeue.after": Case("loss"),
    "timers.before": Case("run"),
    "timers.after": Case("run"),
    "outbox.before": Case("run"),
    "outbox.after": Case("outbox"),
    "signal.before": Case("run", "go"),
    "signal.after": Case("run", "go"),
    "cancel.before": Case("cancel"),
    "cancel.after": Case("cancel"),
    "resume.before": Case("resume"),
    "resume.after": Case("resume"),
    "fork.before": Case("fork"),
    "fork.after": Case("fork"),
    "schedule.before": Case("schedule"),
    "schedule.after": Case("schedule"),
}
CASES = [("agent", point, case) for point, case in AGENT.items()] + [
    ("scheduler", point, case) for point, case in SCHEDULER.items()
]
GROUPS = 4  # each has one platform for its share of the points, so that the whole is quick


def test_every_point_has_its_case():
    assert set(AGENT) == set(points.AGENT)
    assert set(SCHEDULER) == set(points.SCHEDULER)
    assert len(CASES) >= 30


@pytest.fixture
async def rig(settings, nc, pool, monkeypatch):
    monkeypatch.setattr("services.scheduler.tasks.ACK_WAIT", 1.0)  # until a task message comes again
    await pool.execute(TABLES)
    async with crash_rig(settings, nc, Matrix) as made:
        yield made


@pytest.mark.in_memory
@pytest.mark.parametrize("group", range(GROUPS))
async def test_a_run_ends_as_it_would_have_wherever_its_process_is_killed(rig, pool, group):
    walk = Walk(rig, pool)
    expected = await walk.straight()
    wrong = []
    for part, point, case in CASES[group::GROUPS]:
        run_id = point.replace(".", "-")
        try:
            await walk.through(part, point, case, run_id, expected)
        except AssertionError as error:
            wrong.append(f"{part} {point}: {error}")
    assert not wrong, "\n".join(wrong)


class Walk:
    """A run, told from outside, with one kill on its way."""

    def __init__(self, rig: Rig, pool: Any) -> None:
        self.rig = rig
        self.pool = pool

    async def straight(self) -> list[tuple]:
        """What the journal has after a run that nothing happens to."""
        await self.go("run", "straight")
        await self.ended("straight", "completed")
        assert await self.lines("straight") == LINES
        return await self.journal("straight")

    async def through(self, part: str, point: str, case: Case, run_id: str, expected: list[tuple]) -> None:
        """One case: the kill strikes, and then everything is as it must be."""
        kill = Kill(point, part, name=case.name)
        with self.rig.killing(kill):
            await self.go(case.of, run_id, kill)
            await self.rig.replaced()
        await self.check(case, run_id, expected, kill)

    async def go(self, of: str, run_id: str, kill: Kill | None = None) -> None:
        """Do what comes by the point."""
        ask, workflow = self.rig.insist, WORKFLOWS.get(of, "run")
        start = {"task": 1 if of == "lives" else {}, "workflow": workflow, "run_id": run_id}
        if of == "task":
            await self.rig.platform.nc.jetstream().publish("task.matrix", orjson.dumps(start))
        else:
            await ask("run.start.matrix", start)
        if of in WORKFLOWS:
            await getattr(self, f"_{of}")(run_id)
            return
        signal = {"run_id": run_id, "name": "go", "payload": 7, "id": "once"}
        await eventually(lambda: self.pool.fetchval("SELECT TRUE FROM runs WHERE run_id = $1", run_id))
        if kill is not None and kill.point == "config.before":
            await self.waits_for_go(run_id)
            await ask("config.set.matrix", {"configurations": {"word": "new"}})
            await eventually(lambda: self.rig.agent.newest().get_setting("word") == "new")
        if of in ("drain", "loss"):
            await self.waits_for_go(run_id)
            await (self._drain if of == "drain" else self._loss)(run_id, signal)
            return
        if of == "outbox":
            await self.waits_for_go(run_id)
            # Its wake-up is lost.
            await self.pool.execute("UPDATE runs SET status = 'pending' WHERE run_id = $1", run_id)
        await ask("run.signal", signal)

    async def _fork(self, run_id: str) -> None:
        await self.ended(run_id, "completed")
        await self.rig.insist("run.fork", {"run_id": run_id, "step": "last"})

    async def _schedule(self, run_id: str) -> None:
        await self.ended(run_id, "completed")
        said = {"name": run_id, "agent": "matrix", "workflow": "plain", "cron": "@yearly"}
        await self.rig.insist("schedule.set", said)
        await self.pool.execute("UPDATE schedules SET next_at = date_trunc('year', now()) WHERE name = $1", run_id)

    async def _lives(self, run_id: str) -> None:
        await self.ended(run_id, "completed")

    async def _resume(self, run_id: str) -> None:
        await self.ended(run_id, "failed")
        with contextlib.suppress(Conflict):  # it had been resumed before its scheduler was killed
            await self.rig.insist("run.resume", {"run_id": run_id})

    async def _cancel(self, run_id: str) -> None:
        await eventually(lambda: self.rig.attempts[run_id, "hangs"])
        await self.rig.insist("run.cancel", {"run_id": run_id})

    async def _drain(self, run_id: str, signal: dict) -> None:
        """The process is asked to stop while it holds the run, and killed on the way."""
        self.rig.agent.worker.linger = 30.0
        await self.rig.insist("run.signal", {**signal, "name": "other", "id": "other"})  # any: nothing waits for it
        await self.hold(run_id)
        with_kill = asyncio.create_task(self.rig.drain())
        await self.rig.replaced()
        await with_kill
        await self.rig.insist("run.signal", signal)

    async def _loss(self, run_id: str, signal: dict) -> None:
        """The agent's process is lost; the scheduler that finds it is killed on the way."""
        self.rig.agent.worker.linger = 30.0
        await self.hold(run_id)
        await self.rig.lose_agent()
        await self.rig.replaced()
        await self.rig.insist("run.signal", signal)

    async def hold(self, run_id: str) -> None:
        """Bring a waiting run into the memory of the agent, where it stays."""
        await self.pool.execute("UPDATE runs SET status = 'pending', wake_at = NULL WHERE run_id = $1", run_id)
        await eventually(lambda: run_id in self.rig.agent.worker.executions)

    async def waits_for_go(self, run_id: str) -> None:
        query = "SELECT status = 'waiting' AND 'go' = ANY(waiting_signals) FROM runs WHERE run_id = $1"
        await eventually(lambda: self.pool.fetchval(query, run_id))

    # -- what must be -------------------------------------------------------------------------------------------------

    async def check(self, case: Case, run_id: str, expected: list[tuple], kill: Kill) -> None:
        rig, attempts = self.rig, self.rig.attempts
        if case.of == "cancel":
            await self.ended(run_id, "cancelled")
            assert (await self.lines(run_id))["one"] == 1
            return
        await self.ended(run_id, "completed")
        if case.of == "lives":
            assert await self.lines(run_id) == {"life 1": 1, "life 2": 1}
            return
        if case.of == "resume":
            assert await self.lines(run_id) == {"one": 1, "once": 2}
            return
        if case.of == "fork":
            assert await self.lines(run_id) == {"one": 1, "last": 1}
            await self.check_forks(run_id)
            return
        if case.of == "schedule":
            query = "SELECT last_run_id FROM schedules WHERE name = $1"
            made = await eventually(lambda: self.pool.fetchval(query, run_id))
            await self.ended(made, "completed")
            assert await self.lines(made) == {"one": 1, "last": 1}
            return
        lines = await self.lines(run_id)
        assert lines == LINES + Counter([case.again] if case.again else [])
        if case.tried:
            assert attempts[run_id, case.tried] == 2, "the attempt that was lost, and the one that counts"
        for child in (f"{run_id}-child", f"{run_id}-free"):
            await self.ended(child, "completed")
            at_most = 2 if child in kill.held else 1  # it may have stood between its line and its commit
            assert 1 <= (await self.lines(child))["child"] <= at_most
        assert await self.pool.fetchval("SELECT count(*) FROM booked WHERE run_id = $1", run_id) == 1
        signals = await self.pool.fetch("SELECT consumed FROM signals WHERE run_id = $1 AND name = 'go'", run_id)
        assert signals == [(True,)]
        adopted = [("12", "config", "adopt", "ok")] if kill.point == "config.before" else []
        assert await self.journal(run_id) == sorted([*expected, *adopted])
        output = (await rig.platform.run(run_id))["output"]
        assert output == ["one", True, "left", "right", "shaky", 1, "child", 7]

    async def check_forks(self, run_id: str) -> None:
        """Whatever became of the request: a fork that is there goes on, and repeats nothing of what it copied."""
        forks = await self.pool.fetch("SELECT run_id FROM runs WHERE workflow = 'plain' AND run_id ~ '^[0-9a-f]{32}$'")
        assert forks
        for fork in forks:
            await self.ended(fork["run_id"], "completed")
            assert await self.lines(fork["run_id"]) == {"last": 1}
            rows = [(kind, name) for _, kind, name, _ in await self.journal(fork["run_id"])]
            assert rows == [("fork", run_id), ("step", "one"), ("step", "last")]

    async def ended(self, run_id: str, status: str) -> None:
        async def there() -> bool:
            return await self.pool.fetchval("SELECT status FROM runs WHERE run_id = $1", run_id) in STOPPED

        await eventually(there, message=f"{run_id} ends")
        found = await self.pool.fetchrow("SELECT status, error FROM runs WHERE run_id = $1", run_id)
        assert found["status"] == status, found["error"]

    async def lines(self, run_id: str) -> Counter[str]:
        return Counter(r["step"] for r in await self.pool.fetch("SELECT step FROM lines WHERE run_id = $1", run_id))

    async def journal(self, run_id: str) -> list[tuple]:
        query = "SELECT seq, path, kind, name, outcome FROM journal WHERE run_id = $1 ORDER BY seq"
        rows = [tuple(row) for row in await self.pool.fetch(query, run_id)]
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1)), "no seq is left out or used twice"
        return sorted(row[1:] for row in rows)
