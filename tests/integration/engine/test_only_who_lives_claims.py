"""Which process may take a run, and what a claim makes of it. Shown on the statements themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.engine import queues, runs
from perdure.engine.start_options import StartOptions
from perdure.store.queries import load_queries

SQL = load_queries("engine.sql")
QUEUES = load_queries("queues.sql")
OFFER = ["run"], [""], ["h"], [True]


@pytest.fixture
async def live(pool):
    """Register a process of agent `a`."""

    async def live(process: str, *, workflow: str = "run", version: str = "") -> str:
        said = (process, "a", process, 1, 3600.0, [workflow], [version])
        await pool.execute(SQL["register_process"], *said)
        return process

    return live


async def claim(database: Any, process: str, *run_ids: str, agent: str = "a", alone: bool = False) -> list[str]:
    records = await database.fetch(SQL["claim"], process, list(run_ids), agent, "hash", 0, *OFFER, alone)
    return sorted(record["run_id"] for record in records)


async def claim_queued(pool, process: str, queue: str, agent: str = "a") -> list[str]:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(QUEUES["lock_queue"], queue)
        said = (process, queue, agent, 10, "hash", 0, *OFFER, False)
        return sorted(record["run_id"] for record in await connection.fetch(QUEUES["claim_queued"], *said))


async def accept(pool, *run_ids: str, agent: str = "a", **options: Any) -> None:
    placed = StartOptions(**options) if options else None
    await runs.accept(pool, [runs.new_start(run_id, agent, 1, options=placed) for run_id in run_ids])


@pytest.mark.parametrize("how", ["state = 'lost'", "state = 'gone'", "lease_until = now() - interval '1 second'"])
async def test_a_process_that_is_lost_or_past_its_lease_claims_nothing(live, pool, how):
    await accept(pool, "r")
    await accept(pool, "q", queue="line")
    dead, other = await live("dead"), await live("other")
    await pool.execute(f"UPDATE processes SET {how} WHERE process_id = 'dead'")
    assert await claim(pool, dead, "r") == await claim_queued(pool, dead, "line") == []
    assert (await claim(pool, other, "r"), await claim_queued(pool, other, "line")) == (["r"], ["q"])


async def test_a_process_that_was_given_up_renews_no_lease_and_takes_no_lock_again(live, pool):
    process = await live("p")
    assert await pool.fetchval(SQL["renew_lease"], process, 5.0)
    assert await pool.fetchval(SQL["relock_process"], process, 2, 5.0)
    await pool.execute("UPDATE processes SET state = 'lost'")
    assert await pool.fetchval(SQL["renew_lease"], process, 5.0) is None, "it registers anew, and drops what it holds"
    assert await pool.fetchval(SQL["relock_process"], process, 3, 5.0) is None


async def test_of_two_claims_at_once_one_has_the_run(live, pool):
    first, second = await live("first"), await live("second")
    await accept(pool, "r")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        assert await claim(connection, first, "r") == ["r"]
        late = asyncio.create_task(claim(pool, second, "r"))
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not late.done() and not await pool.fetchval(waits):
            await asyncio.sleep(0.01)
        await transaction.commit()
    assert await late == []
    assert dict(await pool.fetchrow("SELECT epoch, process_id FROM runs")) == {"epoch": 1, "process_id": "first"}


async def test_a_process_claims_the_runs_of_its_agent_alone(live, pool):
    process = await live("p")
    await accept(pool, "theirs", agent="b")
    await accept(pool, "mine")
    assert await claim(pool, process, "theirs", "mine") == ["mine"]


async def test_runs_of_an_agent_with_limits_are_claimed_from_its_queue_also_when_the_limits_are_everybodys(live, pool):
    process = await live("p")
    await accept(pool, "r")
    await pool.execute("INSERT INTO queues (queue_name, concurrency) VALUES ('*', 1)")
    assert await claim(pool, process, "r") == []
    assert await queues.where_they_stand(pool, "a", ["r"]) == {"r": "a"}
    assert await claim_queued(pool, process, "a") == ["r"]


async def test_a_run_that_was_claimed_waits_for_nothing_any_more(live, pool):
    process = await live("p")
    await accept(pool, "r")
    await accept(pool, "q", queue="line")
    # as a run is that was paused while it waited, and resumed after long
    await pool.execute(
        "UPDATE runs SET wake_at = now(), waiting_signals = '{go}', waiting_children = '{c}', dispatches = 30"
    )
    assert await claim(pool, process, "r") + await claim_queued(pool, process, "line") == ["r", "q"]
    for record in await pool.fetch("SELECT wake_at, waiting_signals, waiting_children, dispatches FROM runs"):
        assert tuple(record) == (None, None, None, 0)


async def test_only_code_that_another_process_runs_and_this_one_does_not_is_left_to_the_other(live, pool):
    mine, other = await live("mine", version="2"), await live("other", version="1")
    await accept(pool, "old", "new", "first")
    await pool.execute("UPDATE runs SET version = CASE run_id WHEN 'old' THEN '1' WHEN 'new' THEN '2' END")

    async def elsewhere(process: str) -> list[str]:
        found = await pool.fetch(SQL["offered_elsewhere"], ["old", "new", "first"], process)
        return sorted(record["run_id"] for record in found)

    assert (await elsewhere(mine), await elsewhere(other)) == (["old"], ["new"])
    await pool.execute("UPDATE processes SET lease_until = now() - interval '1 second' WHERE process_id = 'other'")
    assert await elsewhere(mine) == [], "it is not passed on to nobody"
    await pool.execute("UPDATE processes SET lease_until = now() + interval '1 hour', state = 'lost'")
    assert await elsewhere(mine) == []


async def test_a_run_is_suspected_after_two_losses_when_its_turn_has_come_and_its_code_is_here(live, pool):
    await live("p")
    starts = [runs.new_start(f"t{n}", "a", n, session_id="s") for n in (1, 2)]
    starts += [runs.new_start("new", "a", 3), runs.new_start("other", "a", 4, workflow="others")]
    for start in starts:
        await runs.accept(pool, [start])
    turns = {r["run_id"]: r["turn"] for r in await pool.fetch("SELECT run_id, turn FROM runs")}

    async def suspects() -> list[str]:
        found, after = [], -1
        while len(found) < 5 and (record := await pool.fetchrow(SQL["suspect"], "a", after, ["run"], ["2"])):
            found.append(record["run_id"])
            after = turns[record["run_id"]]
        return found

    await pool.execute("UPDATE runs SET attempts = 1")
    assert await suspects() == [], "one loss is nothing"
    await pool.execute("UPDATE runs SET attempts = 2")
    assert await suspects() == ["t1", "new"], "each once; t2 has an earlier turn before it, nobody here runs the other"
    await pool.execute("UPDATE runs SET version = '1' WHERE run_id = 't1'")
    assert await suspects() == ["new"], "nor this version"
    await pool.execute("INSERT INTO queues (queue_name, concurrency) VALUES ('a', 0)")
    assert await suspects() == [], "the queue of its agent has no place"
