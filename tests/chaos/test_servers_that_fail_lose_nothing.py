"""Twenty runs in flight while Redis is emptied, NATS loses all its streams, or Postgres is killed."""

from __future__ import annotations

import asyncio
import shutil
import signal as signals
from collections import Counter

import pytest

from perdure.engine.runs import send_signal
from perdure.store.failures import CONNECTION_ERRORS
from tests.agents.ledger import LEDGER_TABLES
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually

RUNS = [f"run-{n}" for n in range(20)]
COUNT = "SELECT count(*) FROM ledger WHERE step = $1"


async def flush_redis(servers, redis) -> None:
    await redis.flushall()


async def kill_nats(servers, redis) -> None:
    await servers.nats.kill()
    shutil.rmtree(servers.nats.data_dir)
    await servers.nats.start()


async def kill_postgres(servers, redis) -> None:
    await servers.postgres.kill()
    await servers.postgres.start()


async def all_at_once(servers, redis) -> None:
    await asyncio.gather(servers.nats.kill(), servers.postgres.kill(), servers.redis.kill())
    shutil.rmtree(servers.nats.data_dir)
    await asyncio.gather(servers.nats.start(), servers.postgres.start(), servers.redis.start())


async def exact(pool) -> None:
    """Each run's journal: seqs without a gap or a double, one outcome a path."""
    for run_id in [r["run_id"] for r in await pool.fetch("SELECT run_id FROM runs")]:
        rows = await pool.fetch("SELECT seq, path, kind, outcome FROM journal WHERE run_id = $1 ORDER BY seq", run_id)
        seqs = [row["seq"] for row in rows]
        assert len(set(seqs)) == len(seqs)
        ends = Counter(r["path"] for r in rows if r["outcome"] != "open" and r["kind"] != "retry")
        assert set(ends.values()) == {1}, (run_id, ends)


@pytest.mark.parametrize("disaster", [flush_redis, kill_nats, kill_postgres, all_at_once])
async def test_all_runs_complete_and_their_journals_are_exact(
    disaster, own_postgres, own_servers, settings, nc, pool, redis, tmp_path
):
    # A test's Postgres answers before it writes; one that is killed must not, or its promises are void.
    await pool.execute("ALTER DATABASE perdure SET synchronous_commit = on")
    await pool.execute(LEDGER_TABLES)
    settings = settings.model_copy(update={"lease_seconds": 2.0, "redispatch_after": 1.0})
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        agents = [started.start("tests.agents.ledger", f"ledger-{n}", PERDURE_LEASE_SECONDS="2") for n in "ab"]
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM processes WHERE state = 'live'"), timeout=20)
        for n, run_id in enumerate(RUNS):
            # Some are held in a step, the others run on through whatever happens.
            task = {"gates": {"first": "open"}} if n % 2 else {}
            await platform.start_run("ledger", task, workflow="mixed", run_id=run_id)
        await eventually(lambda: pool.fetchval(COUNT + " HAVING count(*) >= 20", "first"))

        await disaster(own_servers, redis)

        async def again(query: str) -> object:
            try:
                return await pool.fetchval(query)
            except CONNECTION_ERRORS:  # this pool's connections were lost as well
                return None

        await eventually(lambda: again("INSERT INTO gates VALUES ('open') RETURNING 1"))
        for run_id in RUNS:
            await send_signal(pool, run_id, "go", run_id, "once")  # nobody is nudged: the runs look by themselves
        left = "SELECT run_id, status, attempts, error FROM runs WHERE status <> 'completed' ORDER BY run_id"

        async def done() -> bool:
            found = await pool.fetch(left)
            assert not found, found
            return await pool.fetchval("SELECT count(*) = 20 FROM runs WHERE workflow = 'mixed'")

        await eventually(done, timeout=30, message="all runs complete")

        await exact(pool)
        outputs = await pool.fetch("SELECT run_id, output FROM runs WHERE workflow = 'mixed'")
        assert all(record["run_id"] in record["output"] for record in outputs), "each run has its own signal"
        effects = await pool.fetch("SELECT run_id, count(*) AS n FROM ledger WHERE step = 'book' GROUP BY run_id")
        assert {(r["run_id"], r["n"]) for r in effects} == {(run_id, 1) for run_id in RUNS}, "transactions: once"
        assert await pool.fetchval("SELECT count(*) FROM runs WHERE status <> 'completed'") == 0
        assert all(child.poll() is None for child in agents), "no process gave up"
        for child in agents:
            child.send(signals.SIGTERM)
        assert await agents[0].wait(15.0)
