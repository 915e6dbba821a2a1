from __future__ import annotations

from perdure import subjects
from perdure.agent.base import BaseAgent
from perdure.bus.streams import standing
from perdure.engine import Context, runs, workflow
from perdure.engine.clock import SystemClock
from perdure.engine.start_options import StartOptions
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


async def test_a_wake_up_that_stands_in_the_stream_is_not_repeated_before_it_may_be_read(settings, nc, pool):
    async with in_process(settings, nc):  # makes the streams
        pass
    sweeper = Sweeper(pool, nc, settings, SystemClock())
    await runs.accept(pool, [runs.new_start(f"{agent}-1", agent, 1) for agent in ("behind", "idle")])
    for _ in range(500):  # five seconds' worth
        runs.wake(nc, "behind-0", "behind")

    async def stored() -> bool:
        return await standing(nc.jetstream(), subjects.STREAM_WORK) == {"work.behind": 500}

    await eventually(stored)  # a server takes messages before it stores them

    async def dispatched(age: float, sweep: float = 1.0) -> list[str]:
        await pool.execute("UPDATE runs SET dispatched_at = now() - $1 * interval '1 second', dispatches = 0", age)
        await sweeper.sweep(sweep)
        return [row["run_id"] for row in await pool.fetch("SELECT run_id FROM runs WHERE dispatches > 0 ORDER BY 1")]

    assert await dispatched(3.0) == ["idle-1"]
    assert await dispatched(9.0) == ["behind-1", "idle-1"], "it may have been lost all the same"
    assert await dispatched(3.0, sweep=0.0) == ["behind-1", "idle-1"], "a sweep in a hurry believes no stream"
    await nc.jetstream().purge_stream(subjects.STREAM_WORK)
    assert await dispatched(3.0) == ["behind-1", "idle-1"], "nothing stands there any more"
    await nc.jetstream().delete_stream(subjects.STREAM_WORK)
    assert await dispatched(3.0) == ["behind-1", "idle-1"], "a stream that is gone holds nothing up"


async def test_who_may_not_begin_yet_is_woken_by_whom_it_waits_for_and_not_by_the_sweep(settings, nc, pool):
    for start in [
        *(runs.new_start(f"turn-{n}", "a", n, session_id="s") for n in (1, 2)),
        runs.new_start("queued", "a", 3, options=StartOptions(queue="line")),
        runs.new_start("elsewhere", "b", 4, session_id="s"),
    ]:
        await runs.accept(pool, [start])
    assert await Sweeper(pool, nc, settings, SystemClock()).sweep(0.0) == 2
    swept = await pool.fetch("SELECT run_id FROM runs WHERE dispatches > 0 ORDER BY run_id")
    assert [record["run_id"] for record in swept] == ["elsewhere", "turn-1"]


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
