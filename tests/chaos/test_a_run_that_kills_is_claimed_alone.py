"""A run whose step ends its process, again and again: its neighbours complete, and it ends `dead`."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from tests.agents.poison import HELD_TABLE
from tests.engine_support import until
from tests.platform import in_process
from tests.processes import processes

INNOCENT = int(os.environ.get("PERDURE_CHAOS_INNOCENT_RUNS", "6"))
ATTEMPTS = 3


@pytest.mark.parametrize("queue", [None, "line"])
async def test_a_run_that_takes_its_process_with_it_spends_no_neighbours_attempts(settings, nc, pool, tmp_path, queue):
    await pool.execute(HELD_TABLE)
    settings.run_max_attempts = ATTEMPTS  # of the scheduler
    more = {} if queue is None else {"queue": queue}
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        for n in range(INNOCENT):
            await platform.start_run("poison", {"kills": n == 2}, run_id=f"r{n}", **more)

        async def keep_one_up() -> None:
            number = 0
            while True:
                child = started.start("tests.agents.poison", f"p{number}")
                number += 1
                while child.poll() is None:
                    await asyncio.sleep(0.02)

        keeper = asyncio.create_task(keep_one_up())
        try:
            dead = await until(platform, "r2", "dead", timeout=120)
            assert dead["error"]["type"] == "LostProcess"
            for n in range(INNOCENT):
                if n != 2:
                    assert (await until(platform, f"r{n}", "completed", timeout=60))["output"] == "done"
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        held = await pool.fetch("SELECT run_id, beside, attempts FROM held")
        assert max(row["attempts"] for row in held if row["run_id"] == "r2") == ATTEMPTS
        assert any(row["beside"] > 1 for row in held), "at first they were beside it"
        assert all(row["beside"] == 1 for row in held if row["attempts"] > 2), "who was lost twice is claimed alone"
        assert all(row["attempts"] <= 3 for row in held if row["run_id"] != "r2"), "two lost processes, and no more"
