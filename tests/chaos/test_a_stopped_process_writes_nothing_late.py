"""SIGSTOP beyond the lease, the run finished elsewhere, SIGCONT: a zombie whose rows are refused."""

from __future__ import annotations

import signal

from tests.agents.ledger import LEDGER_TABLES
from tests.engine_support import until
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually


async def test_no_row_of_an_old_epoch_is_added_after_the_run_was_given_to_another(settings, nc, pool, tmp_path):
    await pool.execute(LEDGER_TABLES)
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        lease = {"PERDURE_LEASE_SECONDS": "1"}
        replicas = [started.start("tests.agents.ledger", f"ledger-{n}", **lease) for n in "ab"]
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM processes WHERE state = 'live'"), timeout=20)
        task = {"steps": 6, "gates": {"step 3": "open"}}
        run_ids = [await platform.start_run("ledger", task) for _ in range(6)]
        await eventually(lambda: pool.fetchval("SELECT count(*) = 6 FROM ledger WHERE step = 'step 3'"))
        held = {
            child.pid: await pool.fetchval("SELECT count(*) FROM ledger WHERE step = 'step 3' AND pid = $1", child.pid)
            for child in replicas
        }
        zombie = max(replicas, key=lambda child: held[child.pid])
        assert held[zombie.pid] > 0
        mine = "SELECT DISTINCT run_id FROM ledger WHERE pid = $1"
        stolen = [record["run_id"] for record in await pool.fetch(mine, zombie.pid)]
        before = {r["run_id"]: r["epoch"] for r in await pool.fetch("SELECT run_id, epoch FROM runs")}

        zombie.send(signal.SIGSTOP)
        await eventually(
            lambda: pool.fetchval(
                "SELECT bool_and(epoch > 1) FROM runs WHERE run_id = ANY($1)", stolen
            ), timeout=15, message="the reaper gives the runs of the stopped process to others",
        )  # fmt: skip
        await pool.execute("INSERT INTO gates VALUES ('open')")
        for run_id in run_ids:
            await until(platform, run_id, "completed", timeout=15)
        journal = await pool.fetch("SELECT * FROM journal ORDER BY run_id, seq")

        zombie.send(signal.SIGCONT)  # its steps are through their gate, and it has a row to write for each
        await eventually(
            lambda: pool.fetchval(
                "SELECT count(*) = 2 FROM processes WHERE state = 'live' AND lease_until > clock_timestamp()"
            ), timeout=15, message="the zombie is back, under a new name",
        )  # fmt: skip
        worked = "SELECT count(*) > 0 FROM ledger WHERE pid = $1 AND run_id = ANY($2)"
        fresh: list[str] = []

        async def works_again() -> bool:
            # Both replicas take from one queue: which of them takes a run is not said, so it is asked again.
            fresh.extend([await platform.start_run("ledger", {"steps": 1}) for _ in range(10)])
            for run_id in fresh[-10:]:
                await until(platform, run_id, "completed")
            return bool(await pool.fetchval(worked, zombie.pid, fresh))

        await eventually(works_again, timeout=20, message="the zombie takes new runs again")
        after = await pool.fetch("SELECT * FROM journal WHERE run_id = ANY($1) ORDER BY run_id, seq", run_ids)
        assert after == journal
        for run_id in stolen:
            rows = [row for row in after if row["run_id"] == run_id]
            assert [row["name"] for row in rows] == [f"step {n}" for n in range(6)]
            assert {row["epoch"] for row in rows[:3]} == {before[run_id]}
            assert {row["epoch"] for row in rows[3:]} == {before[run_id] + 2}
