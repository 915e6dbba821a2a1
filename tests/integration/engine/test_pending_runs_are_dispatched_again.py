from __future__ import annotations

from perdure.engine import runs
from perdure.engine.clock import SystemClock
from services.scheduler.sweeper import Sweeper

# seconds since the last wake-up, how often it was repeated, whether it is repeated now
PLACES = (
    (0.5, 0, False),
    (1.5, 0, True),
    (1.5, 1, False),
    (2.5, 1, True),
    (7.0, 3, False),
    (9.0, 3, True),
    (61.0, 30, True),
)


async def test_a_wake_up_is_repeated_each_time_after_twice_as_long_and_a_minute_at_most(settings, nc, pool):
    sweeper = Sweeper(pool, nc, settings, SystemClock())
    await runs.accept(pool, [runs.new_start("r", "nobody", 1)])
    for age, dispatches, due in PLACES:
        changed = "UPDATE runs SET dispatched_at = now() - $1 * interval '1 second', dispatches = $2"
        await pool.execute(changed, age, dispatches)
        assert await sweeper.sweep(1.0) == due, (age, dispatches)
        assert await pool.fetchval("SELECT dispatches FROM runs") == min(dispatches + due, 30)
        assert await sweeper.sweep(0.0) == 1, "a sweep in a hurry takes every pending run"
