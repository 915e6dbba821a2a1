from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, ClassVar

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.engine.accepting import insert_starts
from perdure.errors import Conflict, WorkflowMisuse
from perdure.store.queries import load_queries
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually

RUNS = load_queries("runs.sql")
WAITS = """SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
           WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"""


class Talking(BaseAgent):
    name = "talking"
    said: ClassVar[defaultdict[str, list[Any]]] = defaultdict(list)
    now: ClassVar[defaultdict[str, int]] = defaultdict(int)
    most: ClassVar[int] = 0
    broken: ClassVar[bool] = True

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        await ctx.step("enter", self.enter, ctx.session_id, task["n"])
        await ctx.sleep(0.01)  # the turn leaves memory in its middle, and still nobody else gets in
        if task.get("fail") and Talking.broken:
            raise ValueError("this turn fails")
        await ctx.step("leave", self.leave, ctx.session_id)
        return task["n"]

    @workflow
    async def itself(self, ctx: Context, task: dict) -> Any:
        try:
            return await ctx.call("talking", {"n": 1}, session_id=ctx.session_id)
        except WorkflowMisuse as error:
            return str(error)

    async def enter(self, session: str, n: int) -> None:
        self.said[session].append(n)
        self.now[session] += 1
        type(self).most = max(self.most, self.now[session])

    async def leave(self, session: str) -> None:
        self.now[session] -= 1


@pytest.fixture(autouse=True)
def fresh():
    Talking.said.clear()
    Talking.now.clear()
    Talking.most, Talking.broken = 0, True


async def test_the_first_turn_that_is_not_over_is_woken_when_one_has_ended(pool):
    for n in range(4):
        await runs.accept(pool, [runs.new_start(f"turn-{n}", "talking", n, session_id="s")])
    await pool.execute("UPDATE runs SET status = 'failed', finished_at = now() WHERE run_id IN ('turn-0', 'turn-2')")
    woken = await pool.fetch(load_queries("engine.sql")["next_turns"], ["talking", "talking"], ["s", "other"])
    assert [record["run_id"] for record in woken] == ["turn-1"]
    behind = [(await pool.fetchrow(RUNS["why_pending"], f"turn-{n}"))["behind"] for n in (1, 3)]
    assert behind == [False, True], "and run.get says what a turn waits for"


async def test_turns_come_in_arrival_order_over_two_replicas(settings, nc):
    async with in_process(settings, nc) as platform:
        for _ in range(2):
            (await platform.agent(Talking)).worker.linger = 0.0
        turns = [(n, session) for n in range(5) for session in ("a", "b", "c")]
        run_ids = [await platform.start_run("talking", {"n": n}, session_id=session) for n, session in turns]
        for run_id in run_ids:
            await until(platform, run_id, "completed", timeout=30)
        assert Talking.said == {session: [0, 1, 2, 3, 4] for session in "abc"}
        assert Talking.most == 1


async def test_a_turn_has_its_number_only_once_it_holds_its_session(pool):
    first, second, other = (
        runs.new_start(name, "talking", {}, session_id="s") for name in ("first", "second", "other")
    )
    other.session_id = "t"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(RUNS["lock_sessions"], ["talking/s"])
        waiting = asyncio.create_task(runs.accept(pool, [second]))
        await eventually(lambda: pool.fetchval(WAITS))
        assert await runs.accept(pool, [other]) == {"other": "accepted"}, "another session waits for nobody"
        assert await insert_starts(connection, [first]) == {"first"}
    assert await waiting == {"second": "accepted"}
    turns = await pool.fetch("SELECT run_id FROM runs WHERE session_id = 's' ORDER BY turn")
    assert [row["run_id"] for row in turns] == ["first", "second"]


async def test_a_failed_turn_lets_the_next_one_in_and_comes_back_at_the_end(settings, nc, pool):
    async with in_process(settings, nc, Talking) as platform:
        failed = await platform.start_run("talking", {"n": 0, "fail": True}, session_id="s")
        after = await platform.start_run("talking", {"n": 1}, session_id="s")
        await until(platform, failed, "failed")
        await until(platform, after, "completed")
        Talking.broken = False
        await asyncio.gather(
            platform.request("run.resume", {"run_id": failed}),
            platform.start_run("talking", {"n": 2}, session_id="s"),
        )
        await until(platform, failed, "completed")
        turns = [r["run_id"] for r in await pool.fetch("SELECT run_id FROM runs ORDER BY turn")]
        assert turns.index(after) < turns.index(failed)


async def test_a_stopped_turn_keeps_its_place(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        first = await platform.start_run("talking", {"n": 0}, session_id="s")
        second = await platform.start_run("talking", {"n": 1}, session_id="s")
        await pool.execute("UPDATE runs SET status = 'blocked' WHERE run_id = $1", first)
        await platform.agent(Talking)
        await platform.request("run.resume", {"run_id": first})
        await until(platform, second, "completed")
        assert Talking.said["s"] == [0, 1]


async def test_a_turn_cannot_wait_for_another_turn_of_its_own_session(settings, nc):
    async with in_process(settings, nc, Talking) as platform:
        run_id = await platform.start_run("talking", {}, workflow="itself", session_id="s")
        assert "its own session" in (await until(platform, run_id, "completed", "failed"))["output"]


async def test_one_run_id_is_one_run_and_takes_one_task(settings, nc, pool):
    async with in_process(settings, nc, Talking) as platform:
        same = await asyncio.gather(*(platform.start_run("talking", {"n": 7}, run_id="r") for _ in range(20)))
        assert set(same) == {"r"}
        for other in ({"task": {"n": 8}}, {"task": {"n": 7}, "session_id": "s"}, {"task": {"n": 7}, "workflow": "x"}):
            with pytest.raises(Conflict):
                await platform.request("run.start.talking", {"run_id": "r", **other})
        with pytest.raises(Conflict):
            await platform.request("run.start.somebody-else", {"run_id": "r", "task": {"n": 7}})
        assert (await platform.ask("talking", {"n": 7}, run_id="r"))["output"] == 7
        assert (await platform.ask("talking", {"n": 7}, run_id="r"))["output"] == 7
        assert await pool.fetchval("SELECT count(*) FROM runs") == 1
