"""Schedulers are killed while many schedules are due: each moment becomes one run, and none is left out."""

from __future__ import annotations

import signal

from tests.processes import processes
from tests.support import eventually

SCHEDULES, MOMENTS = 200, 10
FILL = """
INSERT INTO schedules (name, agent_name, cron, missed, missed_limit, next_at)
SELECT format('s%s', n), 'nobody', '0 * * * *', 'all', 1000, date_trunc('hour', now()) - $2::integer * interval '1 hour'
FROM generate_series(1, $1::integer) AS n
"""


def is_ready(started, name):
    return "service.ready" in started.log(name).read_text()


async def test_each_moment_of_each_schedule_is_one_run_while_schedulers_are_killed(settings, nc, pool, tmp_path):
    async with processes(settings, tmp_path) as started:
        first = [started.start("services.scheduler", f"scheduler-{n}") for n in range(2)]
        await eventually(lambda: all(is_ready(started, f"scheduler-{n}") for n in range(2)), timeout=20)
        await pool.execute(FILL, SCHEDULES, MOMENTS - 1)
        await eventually(lambda: pool.fetchval("SELECT count(*) >= 200 FROM runs"), timeout=20, message="some runs")
        first[0].send(signal.SIGKILL)
        started.start("services.scheduler", "scheduler-2")
        done = "SELECT count(*) = 0 FROM schedules WHERE next_at <= now()"
        await eventually(lambda: pool.fetchval(done), timeout=20, message="every schedule is up to now")
        each = """
            SELECT count(*) AS runs, count(DISTINCT task::text) AS moments FROM runs
            GROUP BY run_id NOT LIKE 's-%'"""
        [found] = await pool.fetch(each)
        expected = await pool.fetchval("SELECT extract(epoch FROM max(last_at) - min(last_at)) / 3600 FROM schedules")
        moments = MOMENTS + int(expected)  # an hour may have turned meanwhile
        assert (found["runs"], found["moments"]) == (SCHEDULES * moments, moments)
