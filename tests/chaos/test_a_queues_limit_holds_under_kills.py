"""Replicas are killed while they work on a queue: its limit holds, its places come back, and every run ends."""

from __future__ import annotations

import os
import random
import signal

from services.scheduler.service import Scheduler
from tests.agents.queued import INSIDE_TABLE
from tests.platform import in_process
from tests.processes import processes
from tests.queue_support import configure
from tests.support import eventually

ENDED = "SELECT count(*) >= $1 FROM runs WHERE status = 'completed'"
LOST = "SELECT count(*) = $1 FROM processes WHERE state = 'lost'"
LIMIT = 4
RUNS = int(os.environ.get("PERDURE_CHAOS_QUEUED_RUNS", "80"))
KILLS = int(os.environ.get("PERDURE_CHAOS_QUEUE_KILLS", "3"))


async def test_no_more_than_the_limit_run_over_three_replicas_that_are_killed(settings, nc, pool, tmp_path):
    await pool.execute(INSIDE_TABLE)
    chance = random.Random(15)
    async with in_process(settings, nc) as platform, processes(settings, tmp_path) as started:
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "second"})))
        await configure(platform, "line", concurrency=LIMIT)
        replicas = {name: started.start("tests.agents.queued", name) for name in ("a", "b", "c")}
        for n in range(RUNS):
            await platform.start_run("queued", {"n": n, "steps": 5}, queue="line", run_id=f"r{n}", fair_key=str(n % 3))
        for kill in range(1, KILLS + 1):
            done = RUNS * kill // (KILLS + 2)
            await eventually(lambda done=done: pool.fetchval(ENDED, done), timeout=30, message=f"{done} runs end")
            live = await eventually(lambda: pool.fetch("SELECT instance_id FROM processes WHERE state = 'live'"))
            victim = chance.choice(sorted(row["instance_id"] for row in live))
            replicas.pop(victim).send(signal.SIGKILL)
            replicas[f"new-{kill}"] = started.start("tests.agents.queued", f"new-{kill}")
            await eventually(lambda kill=kill: pool.fetchval(LOST, kill), message="the process is known to be lost")
        await eventually(lambda: pool.fetchval(ENDED, RUNS), timeout=60, message="every run ends")
        assert await pool.fetchval("SELECT max(running) FROM inside") == LIMIT
        assert await pool.fetchval("SELECT count(DISTINCT run_id) FROM inside") == RUNS
