from __future__ import annotations

import contextlib

from nats.errors import TimeoutError as NatsTimeout

from perdure.bus import wire
from perdure.errors import PerdureError, Unavailable
from tests.agents.ledger import LEDGER_TABLES
from tests.platform import InProcess
from tests.processes import processes
from tests.support import eventually


async def test_a_run_accepted_and_not_dispatched_is_found_by_the_next_scheduler(settings, nc, pool, tmp_path):
    await pool.execute(LEDGER_TABLES)
    platform = InProcess(settings, nc)
    async with processes(settings, tmp_path) as started:
        victim = started.start("tests.agents.mute_scheduler", "first")

        async def asked() -> bool:
            """Ask until the run is a row; the scheduler dies before it can answer."""
            with contextlib.suppress(PerdureError, NatsTimeout, TimeoutError):
                await wire.request(nc, "run.start.ledger", {"task": {"steps": 2}, "run_id": "r"}, timeout=0.5)
            return await pool.fetchval("SELECT status = 'pending' FROM runs WHERE run_id = 'r'")

        await eventually(asked, timeout=20)
        assert await victim.wait(5.0)
        started.start("config_manager", "config")
        started.start("tests.agents.ledger", "ledger")
        started.start("services.scheduler", "second")

        async def completed() -> bool:
            return await pool.fetchval("SELECT status = 'completed' FROM runs WHERE run_id = 'r'")

        await eventually(completed, timeout=20)

        async def asked_again() -> str | None:
            """It wakes what it finds before it answers requests."""
            with contextlib.suppress(Unavailable):
                return await platform.start_run("ledger", {"steps": 2}, run_id="r")

        again = await eventually(asked_again, timeout=20)
        assert again == "r"
        assert await pool.fetchval("SELECT count(*) FROM ledger") == 2
