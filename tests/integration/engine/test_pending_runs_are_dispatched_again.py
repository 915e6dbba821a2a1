from __future__ import annotations

from perdure.agent.base import BaseAgent
from perdure.engine import Context, runs, workflow
from perdure.engine.clock import SystemClock
from services.scheduler.sweeper import Sweeper
from tests.platform import in_process
from tests.support import eventually

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


class Late(BaseAgent):
    name = "late"

    @workflow
    async def run(self, ctx: Context, task: int) -> int:
        return task


async def test_a_run_that_waited_long_for_its_agent_does_not_wait_long_for_its_next_wake_up(settings, nc, pool):
    starts = [runs.new_start("mine", "late", 7), runs.new_start("theirs", "nobody", 7)]
    async with in_process(settings, nc) as platform:
        await runs.accept(pool, starts)
        await pool.execute("UPDATE runs SET dispatches = 30, dispatched_at = now() - interval '10 seconds'")
        await platform.agent(Late)

        async def done() -> bool:
            return (await platform.run("mine"))["status"] == "completed"

        await eventually(done, timeout=15.0)  # the pause of a wake-up repeated so often is a minute
    assert await pool.fetchval("SELECT dispatches FROM runs WHERE run_id = 'theirs'") >= 30
