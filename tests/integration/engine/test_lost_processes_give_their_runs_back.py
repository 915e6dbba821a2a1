from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

import asyncpg
import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.store.postgres import Connection
from perdure.store.queries import load_queries
from tests.engine_support import until
from tests.platform import in_process
from tests.support import eventually

SQL = load_queries("engine.sql")


class Working(BaseAgent):
    name = "working"
    ran: ClassVar[Counter[str]] = Counter()
    gate: ClassVar[asyncio.Event]

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        done = [await ctx.step(f"s{n}", self.work, f"s{n}", n in task.get("hold", ())) for n in range(task["steps"])]
        return len(done)

    @workflow
    async def parent(self, ctx: Context, task: dict) -> Any:
        return await ctx.call("working", {"steps": 1, "hold": [0]}, run_id="victim")

    async def work(self, name: str, hold: bool) -> str:
        self.ran[name] += 1
        if hold:
            await self.gate.wait()
        return name


@pytest.fixture(autouse=True)
async def fresh():
    Working.ran.clear()
    Working.gate = asyncio.Event()


def held(process) -> list[str]:
    return sorted(process.worker.executions)


async def test_a_drain_ends_steps_in_flight_begins_none_and_counts_no_attempt(settings, nc, pool):
    async with in_process(settings, nc) as platform:
        first = await platform.agent(Working, drain_timeout=5.0)
        run_id = await platform.start_run("working", {"steps": 3, "hold": [1]})
        stuck = await platform.start_run("working", {"steps": 1})
        await until(platform, stuck, "completed")
        await eventually(lambda: Working.ran["s1"] == 1)
        stopping = asyncio.create_task(first.stop())
        await eventually(lambda: first.worker._draining)
        Working.gate.set()
        await stopping
        platform.services.remove(first)
        run = await platform.run(run_id)
        assert run["status"] == "pending"
        assert [step["name"] for step in run["steps"]] == ["s0", "s1"], "the step in flight was finished, none begun"
        assert (run["attempts"], run["process_id"]) == (0, None)
        await platform.agent(Working)
        assert (await until(platform, run_id, "completed"))["output"] == 3
        assert Working.ran["s1"] == 1


async def test_a_drain_gives_back_what_does_not_end_in_time(settings, nc):
    async with in_process(settings, nc) as platform:
        first = await platform.agent(Working, drain_timeout=0.2)
        second = await platform.agent(Working, run_slots=1)
        run_ids = [await platform.start_run("working", {"steps": 1, "hold": [0]}) for _ in range(6)]
        await eventually(lambda: len(held(first)) + len(held(second)) >= 6)
        mine = held(first)
        assert mine
        platform.services.remove(first)
        await first.stop()
        Working.gate.set()
        for run_id in run_ids:
            run = await until(platform, run_id, "completed")
            assert run["attempts"] == 1


async def test_a_run_whose_process_is_lost_too_often_without_progress_is_dead_and_says_why(settings, nc):
    settings = settings.model_copy(update={"run_max_attempts": 2})
    async with in_process(settings, nc) as platform:
        parent_process = await platform.agent(Working)
        run_id = await platform.start_run("working", {}, workflow="parent")
        for attempt in (1, 2):
            process = parent_process if attempt == 1 else await platform.agent(Working)
            await eventually(lambda process=process: "victim" in process.worker.executions)
            platform.services.remove(process)
            await process.abort()
        await platform.agent(Working)
        victim = await until(platform, "victim", "dead")
        assert victim["attempts"] == 2
        assert victim["error"]["type"] == "LostProcess"
        assert "lost 2 times in a row" in victim["error"]["message"]
        parent = await until(platform, run_id, "failed")
        assert "ended dead" in parent["error"]["message"]


async def test_progress_sets_the_count_back(settings, nc):
    settings = settings.model_copy(update={"run_max_attempts": 2})
    async with in_process(settings, nc) as platform:
        run_id = await platform.start_run("working", {"steps": 5, "hold": list(range(5))})
        for n in range(5):
            process = await platform.agent(Working)
            await eventually(lambda n=n: Working.ran[f"s{n}"] == 1)
            Working.gate.set()
            Working.gate = asyncio.Event()
            if n < 4:
                await eventually(lambda n=n: Working.ran[f"s{n + 1}"] == 1)
                Working.ran[f"s{n + 1}"] = 0
                platform.services.remove(process)
                await process.abort()  # each life ends after one step
        run = await until(platform, run_id, "completed", "dead")
        assert (run["status"], run["attempts"]) == ("completed", 1)


async def test_runs_that_the_database_ascribes_to_a_living_process_which_knows_nothing_are_given_back(
    settings, nc, pool, monkeypatch
):
    monkeypatch.setattr("perdure.engine.claims.AUDIT_EVERY", 0.2)
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Working)
        run_id = await platform.start_run("working", {"steps": 2, "hold": [1]})
        await eventually(lambda: Working.ran["s1"] == 1)
        process.worker.executions[run_id].close()  # as if the answer to its claim had been lost
        Working.gate.set()
        run = await until(platform, run_id, "completed")
        assert (run["output"], run["epoch"]) == (2, 3)
        assert await pool.fetchval("SELECT count(*) FROM processes WHERE state = 'lost'") == 0


async def test_a_claim_whose_answer_is_lost_is_found(settings, nc, monkeypatch):
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Working)
        worker = process.worker
        fetch = asyncpg.Connection.fetch
        lost = []

        async def lossy(connection: Connection, query: str, *args: Any, **more: Any) -> Any:
            found = await fetch(connection, query, *args, **more)
            if query == worker.queries["claim"] and found and not lost:
                lost.append(found)
                raise ConnectionResetError("the answer is lost")
            return found

        monkeypatch.setattr(asyncpg.Connection, "fetch", lossy)
        run_id = await platform.start_run("working", {"steps": 1})
        run = await until(platform, run_id, "completed", timeout=5)
        assert lost
        assert run["attempts"] == 1


async def test_a_process_is_lost_without_its_lock_or_past_its_lease_and_neither_counts_after_a_restart(settings, pool):
    await pool.execute(SQL["register_process"], "p", "working", "p", 7, 3600.0, ["run"], [""])

    async def lost(*, leases: bool = True, lease_seconds: float = 0.0) -> list[tuple[str, bool]]:
        found = await pool.fetch(SQL["lost_processes"], leases, lease_seconds)
        return [(record["process_id"], record["lease_over"]) for record in found]

    assert await lost() == [("p", False)], "nobody holds its lock"
    elsewhere = await asyncpg.connect(urlsplit(settings.database_url)._replace(path="/postgres").geturl())
    assert await elsewhere.fetchval(SQL["take_lock"], 7)
    assert await lost() == [("p", False)], "a lock in another database is another's"
    await elsewhere.close()
    async with pool.acquire() as connection:
        assert await connection.fetchval(SQL["take_lock"], 7)
        assert await lost() == []
        await pool.execute("UPDATE processes SET lease_until = now() - interval '1 second'")
        assert await lost() == [("p", True)]
        assert await lost(leases=False) == [], "nobody could renew: Postgres was away"
        assert await lost(lease_seconds=1e9) == [], "Postgres has just started: its lease has all its length again"
        await connection.execute("SELECT pg_advisory_unlock_all()")
    assert await lost(leases=False) == [("p", True)]
    await pool.execute("UPDATE processes SET postmaster_started = '2020-01-01Z'")
    assert await lost(leases=False) == [], "the lock went with the server"


async def test_what_a_lost_process_held_is_found_also_when_whoever_buried_it_died_or_its_row_is_gone(pool):
    starts = [runs.new_start(run_id, "working", 1) for run_id in ("live", "buried", "gone", "ended")]
    await runs.accept(pool, starts)
    for process in ("live", "buried"):
        await pool.execute(SQL["register_process"], process, "working", process, 7, 3600.0, ["run"], [""])
    await pool.execute("UPDATE runs SET status = 'running', process_id = run_id")
    await pool.execute("UPDATE runs SET status = 'failed', process_id = 'buried' WHERE run_id = 'ended'")
    await pool.execute(SQL["bury_process"], "buried", datetime.now(UTC))
    held = sorted(record["process_id"] for record in await pool.fetch(SQL["held_by_lost"]))
    assert held == ["buried", "gone"]
    for process in held:
        records = await pool.fetch(SQL["requeue_lost"], process, 9, 10)
        assert [record["run_id"] for record in records] == [process], "and what has ended stays"
    assert await pool.fetch(SQL["held_by_lost"]) == []
    assert await pool.fetchval("SELECT epoch FROM runs WHERE run_id = 'gone'") == 1


async def test_a_process_taken_for_lost_drops_what_it_holds_and_goes_on_under_a_new_name(settings, nc, pool):
    settings = settings.model_copy(update={"redispatch_after": 0.3})
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Working)
        before = process.worker.process_id
        run_id = await platform.start_run("working", {"steps": 3, "hold": [1]})
        await eventually(lambda: Working.ran["s1"] == 1)
        zombie = process.worker.executions[run_id]
        # Its session lock goes, as in a broken connection: it is buried within a poll, its lease long not over.
        await pool.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1",
                           "%liveness working%")  # fmt: skip
        await eventually(lambda: zombie.closed and process.worker.process_id != before)
        await eventually(lambda: Working.ran["s1"] == 2)
        Working.gate.set()
        run = await until(platform, run_id, "completed")
        epochs = [step["epoch"] for step in run["steps"]]
        assert epochs == sorted(epochs)
        assert Working.ran == {"s0": 1, "s1": 2, "s2": 1}


async def test_a_process_taken_for_lost_stops_work_that_others_may_have_begun(settings, nc, pool):
    settings = settings.model_copy(update={"redispatch_after": 0.3})
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Working)
        run_id = await platform.start_run("working", {"steps": 1, "hold": [0]})
        await eventually(lambda: Working.ran["s0"] == 1)
        zombie = process.worker.executions[run_id]
        await process.worker._consumer.stop()  # it does not claim the run again, so nothing but the news stops it
        await pool.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1",
                           "%liveness working%")  # fmt: skip
        await eventually(lambda: zombie.closed and process.worker.steps_running == 0)
        Working.gate.set()
        await platform.agent(Working)
        await until(platform, run_id, "completed")


async def test_past_its_lease_a_process_begins_no_step(settings, nc, monkeypatch):
    monkeypatch.setattr("perdure.engine.claims.AUDIT_EVERY", 0.2)
    async with in_process(settings, nc) as platform:
        process = await platform.agent(Working)
        run_id = await platform.start_run("working", {"steps": 2, "hold": [0]})
        await eventually(lambda: Working.ran["s0"] == 1)
        liveness = process.worker._liveness
        extend, tell = liveness._extend, liveness._tell_lost
        liveness._extend = lambda _asked: None  # the database does not answer any more
        liveness._tell_lost = lambda **_said: None  # and the thread is late in saying so
        liveness._until = 0.0
        Working.gate.set()

        async def first_is_recorded() -> bool:
            return len((await platform.run(run_id))["steps"]) == 1

        def second_must_not_begin() -> bool:
            execution = process.worker.executions[run_id]  # another one, when every run is replayed at every await
            return execution.busy == 1 and not process.worker.may_start(execution)

        await eventually(first_is_recorded)
        await eventually(second_must_not_begin)
        assert Working.ran["s1"] == 0
        liveness._tell_lost = tell
        liveness._extend = extend
        assert (await until(platform, run_id, "completed"))["output"] == 2
