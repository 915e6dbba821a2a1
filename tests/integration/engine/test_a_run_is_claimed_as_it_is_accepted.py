"""Truth 2 where the scheduler claims: what it may, for whom, and what becomes of a word that is lost."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import orjson
import pytest

from perdure import subjects
from perdure.agent.base import BaseAgent
from perdure.bus import wire
from perdure.engine import Context, claims, runs, workflow
from perdure.engine.accepting import insert_starts
from perdure.engine.rows import Holder, Start
from perdure.engine.slots import SCHEDULERS
from perdure.store.queries import load_queries
from services.scheduler.service import Scheduler
from tests.engine_support import until
from tests.platform import InProcess, in_process
from tests.support import eventually

RUNS = load_queries("runs.sql")
AT_ONCE = "SELECT COALESCE(started_at = created_at, FALSE) FROM runs WHERE run_id = $1"
WAITS = """SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
           WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"""
HOLDER = Holder("quick.one.1", "", "hash", "config", 7)


class Quick(BaseAgent):
    name = "quick"
    stops: ClassVar[asyncio.Event]

    @workflow
    async def run(self, ctx: Context, task: Any) -> Any:
        if task == "stay":
            await ctx.step("stay", self.stay)
        return {"task": task, "colour": ctx.config.get_setting("colour", "none")}

    async def stay(self) -> None:
        await self.stops.wait()


@pytest.fixture(autouse=True)
def fresh():
    Quick.stops = asyncio.Event()


async def claimed_at_once(platform: InProcess, pool, task: Any, **more: Any) -> str:
    """A run that was claimed in the commit that accepted it: the first ones ask for slots."""
    for _ in range(200):
        run_id = await platform.start_run("quick", task, **more)
        if await pool.fetchval(AT_ONCE, run_id):
            return run_id
        await until(platform, run_id, "completed")
    raise AssertionError("no run was claimed as it was accepted")


async def make_process(
    pool, process_id: str, *, agent: str = "quick", state: str = "live", lease: float = 60.0
) -> None:
    await pool.execute(
        """INSERT INTO processes (process_id, agent_name, instance_id, lock_key, postmaster_started, lease_until, state)
           VALUES ($1, $2, 'one', 1, now(), now() + $3 * interval '1 second', $4)""",
        process_id, agent, lease, state,
    )  # fmt: skip


def start_of(run_id: str, holder: Holder | None = HOLDER, **more: Any) -> Start:
    start = runs.new_start(run_id, "quick", {"n": 1}, **more)
    start.holder = holder
    return start


async def test_such_a_run_needs_no_wake_up_and_is_in_its_first_epoch(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        await claimed_at_once(platform, pool, "first")
        before = (await nc.jetstream().stream_info(subjects.STREAM_WORK)).state.last_seq
        run_id = await claimed_at_once(platform, pool, "second")
        run = await until(platform, run_id, "completed")
        assert run["output"] == {"task": "second", "colour": "none"}
        assert (await nc.jetstream().stream_info(subjects.STREAM_WORK)).state.last_seq == before
        row = await pool.fetchrow("SELECT epoch, attempts, version, source_hash FROM runs WHERE run_id = $1", run_id)
        assert (row["epoch"], row["attempts"], row["version"]) == (1, 1, "")
        assert row["source_hash"] == platform.services[-1].worker.offer.hashes[0]


async def test_the_row_says_who_holds_it_and_what_it_stands_on(pool):
    await make_process(pool, HOLDER.process_id)
    start = start_of("r")
    assert await runs.accept(pool, [start, start_of("other", None)]) == {"r": "accepted", "other": "accepted"}
    row = await pool.fetchrow("SELECT * FROM runs WHERE run_id = 'r'")
    held = {name: row[name] for name in ("status", "epoch", "attempts", "process_id", "config_hash", "config_revision")}
    assert held == {"status": "running", "epoch": 1, "attempts": 1, "process_id": HOLDER.process_id,
                    "config_hash": "config", "config_revision": 7}  # fmt: skip
    assert row["shelf"] == await pool.fetchval("SELECT shelf_for('quick')")
    assert start.held is not None
    assert await pool.fetchval("SELECT status FROM runs WHERE run_id = 'other'") == "pending"


@pytest.mark.parametrize(
    "process",
    [{"state": "lost"}, {"state": "gone"}, {"lease": -1}, {"agent": "other"}, None],
    ids=["lost", "gone", "past its lease", "of another agent", "unknown"],
)
async def test_a_process_that_cannot_hold_it_does_not_get_it(pool, process):
    if process is not None:
        await make_process(pool, HOLDER.process_id, **process)
    start = start_of("r")
    await runs.accept(pool, [start])
    assert start.held is None
    assert await pool.fetchrow("SELECT status, epoch, process_id, started_at FROM runs") == ("pending", 0, None, None)


@pytest.mark.parametrize("queue", ["quick", "*"])
async def test_a_run_of_an_agent_with_limits_stands_in_its_queue(pool, queue):
    await make_process(pool, HOLDER.process_id)
    await pool.execute("INSERT INTO queues (queue_name, concurrency) VALUES ($1, 5)", queue)
    start = start_of("r")
    await runs.accept(pool, [start])
    assert start.held is None
    assert await pool.fetchval("SELECT status FROM runs") == "pending"


async def test_a_run_that_is_there_is_not_claimed_by_its_repeat(pool):
    await make_process(pool, HOLDER.process_id)
    await runs.accept(pool, [start_of("r", None)])
    again = start_of("r")
    assert await runs.accept(pool, [again]) == {"r": "pending"}
    assert again.held is None


async def test_a_turn_whose_session_is_busy_waits(pool):
    await make_process(pool, HOLDER.process_id)
    first, second = start_of("first", session_id="s"), start_of("second", session_id="s")
    await runs.accept(pool, [first])
    await runs.accept(pool, [second])
    assert first.held is not None
    assert second.held is None


async def test_a_turn_sees_the_one_that_was_accepted_while_it_waited_for_the_session(pool):
    await make_process(pool, HOLDER.process_id)
    first, second = start_of("first", None, session_id="s"), start_of("second", session_id="s")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(RUNS["lock_sessions"], ["quick/s"])
        waiting = asyncio.create_task(runs.accept(pool, [second]))
        await eventually(lambda: pool.fetchval(WAITS))
        await insert_starts(connection, [first])
    await waiting
    assert second.held is None, "its statement began before the first turn was committed"


async def test_a_word_that_is_lost_costs_its_run_no_attempt(settings, nc, pool, monkeypatch):
    monkeypatch.setattr(claims, "AUDIT_EVERY", 600.0)
    async with in_process(settings, nc, Quick) as platform:
        worker = platform.services[-1].worker
        await claimed_at_once(platform, pool, 0)
        worker._reserved.deaf = True
        run_id = await claimed_at_once(platform, pool, "lost")
        await worker._claims._audit()
        assert (await platform.run(run_id))["status"] == "running", "its word may still be on its way"
        worker._reserved.deaf = False
        await worker.on_reconnect()
        await until(platform, run_id, "completed", timeout=20)
        assert await pool.fetchrow("SELECT epoch, attempts FROM runs WHERE run_id = $1", run_id) == (3, 1)


async def test_a_run_begins_with_the_configuration_that_is_live_when_it_comes(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        worker = platform.services[-1].worker
        await claimed_at_once(platform, pool, 0)
        await platform.request("config.set.quick", {"configurations": {"colour": "green"}})
        await eventually(lambda: worker.newest_config().get_setting("colour", "none") == "green")
        run_id = await claimed_at_once(platform, pool, "after")
        assert (await until(platform, run_id, "completed"))["output"]["colour"] == "green"
        stood_on = await pool.fetchrow("SELECT config_hash, config_revision FROM runs WHERE run_id = $1", run_id)
        assert stood_on == (worker.newest_config().hash, worker.newest_config().revision)


async def test_a_process_that_drains_gives_back_what_comes_to_it(settings, nc, pool, monkeypatch):
    monkeypatch.setattr(claims, "AUDIT_EVERY", 600.0)
    async with in_process(settings, nc, Quick) as platform:
        first = platform.services[-1]
        await claimed_at_once(platform, pool, 0)
        staying = await claimed_at_once(platform, pool, "stay")
        await eventually(lambda: first.worker.steps_running == 1)
        first.worker._reserved.withdraw = lambda: None  # the scheduler has not heard of it yet
        draining = asyncio.create_task(first.worker.drain())
        await eventually(lambda: not first.worker.takes)
        run_id = await claimed_at_once(platform, pool, "late")
        row = "SELECT status, attempts FROM runs WHERE run_id = $1"

        async def given_back() -> bool:
            return await pool.fetchrow(row, run_id) == ("pending", 0)

        await eventually(given_back)
        Quick.stops.set()
        await draining
        await platform.agent(Quick)
        await until(platform, run_id, "completed", timeout=20)
        await until(platform, staying, "completed", timeout=20)


async def test_a_process_that_drains_takes_its_slots_back(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        first = platform.services[-1]
        await claimed_at_once(platform, pool, 0)
        staying = await claimed_at_once(platform, pool, "stay")
        await eventually(lambda: first.worker.steps_running == 1)
        draining = asyncio.create_task(first.worker.drain())
        await eventually(lambda: not first.worker.takes)
        await wire.request(first.worker.nats, "run.get", {"run_id": staying})  # comes after what was said before
        run_id = await platform.start_run("quick", "late")
        assert await pool.fetchrow("SELECT status, epoch FROM runs WHERE run_id = $1", run_id) == ("pending", 0)
        Quick.stops.set()
        await draining


async def test_each_scheduler_has_slots_of_its_own(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        other = await platform.start(Scheduler(settings.model_copy(update={"instance_id": "other-scheduler"})))
        worker = next(each.worker for each in platform.services if hasattr(each, "worker"))
        for n in range(50):
            await until(platform, await platform.start_run("quick", n), "completed")
        assert len(worker._reserved._grants) == 2
        assert other is platform.services[-1]
        assert await pool.fetchval("SELECT count(*) FROM runs WHERE started_at = created_at") >= 2


async def test_schedulers_that_are_gone_make_room_and_a_crowd_gets_no_slots(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        reserved = platform.services[-1].worker._reserved
        await claimed_at_once(platform, pool, 0)
        for number in range(SCHEDULERS + 9):
            await nc.publish(subjects.slots_wanted("quick"), b"other-%d" % number)
        await nc.flush()
        await eventually(lambda: len(reserved._grants) == SCHEDULERS)
        for grant in reserved._grants.values():
            grant.until = 0.0
        await nc.publish(subjects.slots_wanted("quick"), b"late")
        await eventually(lambda: list(reserved._grants) == ["late"])
        assert (await platform.ask("quick", 1))["status"] == "completed"


async def test_garbage_on_these_subjects_harms_nobody(settings, nc, pool):
    async with in_process(settings, nc, Quick) as platform:
        worker = platform.services[-1].worker
        await claimed_at_once(platform, pool, 0)
        [scheduler] = worker._reserved._grants
        good = {"process_id": worker.process_id, "scheduler": "x", "used": 1, "config_hash": "h", "config_revision": 1,
                "since": "2026-01-01T00:00:00+00:00"}  # fmt: skip
        for junk in (b"", b"[]", b"{}", b"\xff", orjson.dumps({**good, "runs": [[1, 2]]}),
                     orjson.dumps({**good, "runs": [[1, "run", "", None, None, "null"]]}),
                     orjson.dumps({**good, "process_id": "quick.someone.else", "runs": []})):  # fmt: skip
            await nc.publish(subjects.process_claimed(worker.process_id), junk)
            await nc.publish(subjects.slots_wanted("quick"), junk)
            await nc.publish(subjects.slots_granted(scheduler, "quick"), junk)
        grant = {"process_id": worker.process_id, "limit": 5, "seconds": 5.0, "config_hash": "h", "config_revision": 1,
                 "workflows": {"run": ["", "h"]}}  # fmt: skip
        await nc.publish(subjects.slots_granted(scheduler, "another"), orjson.dumps(grant))
        await nc.flush()
        run_id = await claimed_at_once(platform, pool, "after")
        await until(platform, run_id, "completed")
