"""kill -9 of an agent's process in the middle of a run: another replica finishes it, and repeats at most one step."""

from __future__ import annotations

import signal
from collections import Counter

from perdure import Client
from tests.agents.ledger import LEDGER_TABLES
from tests.platform import in_process
from tests.processes import processes
from tests.support import eventually


async def test_a_run_of_ten_steps_survives_kill_9_with_every_earlier_step_done_once(settings, nc, pool, tmp_path):
    await pool.execute(LEDGER_TABLES)
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        replicas = {child.pid: child for child in (started.start("tests.agents.ledger", f"ledger-{n}") for n in "ab")}
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM processes WHERE state = 'live'"), timeout=20)

        run_id = await platform.start_run("ledger", {"steps": 10, "gates": {"step 5": "open"}})
        victim = await eventually(
            lambda: pool.fetchval("SELECT pid FROM ledger WHERE run_id = $1 AND step = 'step 5'", run_id)
        )
        replicas[victim].send(signal.SIGKILL)
        await pool.execute("INSERT INTO gates VALUES ('open')")

        async def completed():
            return (await platform.run(run_id))["status"] == "completed"

        await eventually(completed, timeout=10, message="another replica finishes the run")
        lines = await pool.fetch("SELECT step, pid FROM ledger WHERE run_id = $1 ORDER BY at", run_id)
        times = Counter(line["step"] for line in lines)
        assert times == {f"step {n}": 2 if n == 5 else 1 for n in range(10)}
        by = {line["step"]: line["pid"] for line in lines}
        assert all(by[f"step {n}"] == victim for n in range(5))
        assert all(by[f"step {n}"] != victim for n in range(5, 10))
        run = await platform.run(run_id)
        assert [step["name"] for step in run["steps"]] == [f"step {n}" for n in range(10)]
        assert [step["seq"] for step in run["steps"]] == list(range(1, 11))
        assert run["attempts"] == 1, "the journal grew since the first claim, so the count began anew"


async def test_a_result_of_five_megabytes_outlives_its_process(settings, nc, pool, tmp_path):
    await pool.execute(LEDGER_TABLES)
    size = 5_000_000
    async with (
        in_process(settings, nc) as platform,
        processes(settings, tmp_path) as started,
        Client(settings) as client,
    ):
        replicas = {child.pid: child for child in (started.start("tests.agents.ledger", f"ledger-{n}") for n in "ab")}
        await eventually(lambda: pool.fetchval("SELECT count(*) = 2 FROM processes WHERE state = 'live'"), timeout=20)

        task = {"size": size, "notes": "n" * size, "gates": {"held": "open"}}
        run = await client.start("ledger", task, workflow="large", run_id="large")
        victim = await eventually(lambda: pool.fetchval("SELECT pid FROM ledger WHERE step = 'held'"))
        replicas[victim].send(signal.SIGKILL)
        await pool.execute("INSERT INTO gates VALUES ('open')")

        assert await run.result(timeout=20) == {"made": "large " + "é" * (size // 2), "notes": size}
        lines = await pool.fetch("SELECT step, pid FROM ledger ORDER BY at")
        assert Counter(line["step"] for line in lines) == {"make": 1, "held": 2}
        assert lines[-1]["pid"] != victim
        assert (await platform.run("large"))["large"]["task"] > size
