"""`@cron` and `@every` are schedules like all others: made, changed and retired as the code of agents says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.agent.declaring import schedules_of
from perdure.agent.triggers import cron, every
from perdure.client import Client
from perdure.config.snapshot import AgentConfig
from perdure.engine import Context
from perdure.engine.codec import short_hash
from perdure.errors import Conflict, InvalidRequest, NotFound
from perdure.schedules.declared import SAY_EVERY, SILENT, Declaration, take_up
from perdure.schedules.ticking import tick
from tests.platform import in_process
from tests.support import eventually

NOW = datetime(2030, 1, 1, 8, 30, tzinfo=UTC)
NAME = "cron.shop.count"


class Shop(BaseAgent):
    name = "shop"

    @cron("0 9 * * *", timezone="Europe/Rome")
    async def count(self, ctx: Context, task: dict) -> str:
        return task["scheduled_for"]

    @every("300d", overlap="skip")
    @cron("0 9 * * *", catch_up=True)
    async def look(self, ctx: Context, task: dict) -> str:
        return task["scheduled_for"]


def agent_with(*decorators) -> BaseAgent:
    """An agent whose workflow `count` has these."""

    async def count(self, ctx, task):
        return task["scheduled_for"]

    for decorator in decorators:
        count = decorator(count)
    made = type("Shop", (BaseAgent,), {"name": "shop", "count": count})
    return made(AgentConfig.from_row({}, agent_name="shop"))


class Code:
    """A version of the code of agent `shop`, whose processes say what it declares."""

    def __init__(self, pool, *decorators):
        self.pool = pool
        self.declaration = Declaration(pool, "shop", schedules_of(agent_with(*decorators)))

    async def says(self, now=NOW):
        """A process of it says it, and a scheduler looks."""
        said = await self.declaration.say()
        await take_up(self.pool, now)
        return said


async def time_passes(pool, seconds):
    """The same as a wait of so many seconds in which nobody says anything."""
    await pool.execute(
        "UPDATE schedule_declarations SET seen_at = seen_at - $1::float8 * interval '1 second', "
        "since = since - $1::float8 * interval '1 second'",
        seconds,
    )


async def row(pool, name=NAME):
    return await pool.fetchrow("SELECT * FROM schedules WHERE name = $1", name)


async def moments(pool):
    tasks = await pool.fetch("SELECT task FROM runs ORDER BY turn")
    return [orjson.loads(each["task"])["scheduled_for"][:16] for each in tasks]


async def test_an_agents_process_declares_its_schedules_and_the_scheduler_runs_them(settings, nc, pool):
    async with in_process(settings, nc, Shop, Shop) as platform, Client(settings) as client:

        async def there():
            return len((await client.schedules(agent="shop")).schedules) == 3

        await eventually(there)
        count, look, more = (await client.schedules()).schedules
        assert (count["name"], count["cron"], count["timezone"]) == (NAME, "0 9 * * *", "Europe/Rome")
        assert (count["missed"], count["overlap"], count["declared"]) == ("latest", "buffer_one", True)
        assert (look["name"], look["missed"], look["missed_limit"]) == ("cron.shop.look", "all", 1000)
        assert (look["overlap"], look["timezone"]) == ("allow", "UTC")
        assert (more["name"], more["cron"], more["overlap"]) == ("cron.shop.look-2", "@every 25920000s", "skip")
        assert more["last_run_id"] is None, "a schedule that is new begins now"
        await pool.execute("UPDATE schedules SET next_at = now() - interval '300 days' WHERE name = $1", more["name"])

        async def ran():
            run = (await client.get_schedule(more["name"]))["last_run_id"]
            return run and (await platform.run(run))["status"] == "completed"

        await eventually(ran)
        with pytest.raises(Conflict, match="declared by the code of agent 'shop'"):
            await client.delete_schedule(NAME)
        with pytest.raises(InvalidRequest, match="@cron"):
            await client.set_schedule(NAME, "shop", "@daily")
        assert (await client.pause_schedule(NAME))["paused"]
        acts = await pool.fetch("SELECT DISTINCT actor FROM audit_log WHERE act = 'schedule.set'")
        assert [act["actor"] for act in acts] == ["agent shop"]


async def test_a_moment_is_one_run_and_does_not_wait_for_a_process_of_the_agent(pool):
    await Code(pool, cron("0 9 * * *")).says()
    due, made = await tick(pool, NOW + timedelta(hours=1))
    assert (due, [start.workflow for start in made]) == (1, ["count"])
    # three days without a process: one run waits, and no other one is made before it has begun
    await tick(pool, NOW + timedelta(days=3))
    assert await moments(pool) == ["2030-01-01T09:00"]
    await pool.execute("UPDATE runs SET epoch = 1, status = 'running'")
    await tick(pool, NOW + timedelta(days=3, hours=1))
    assert await moments(pool) == ["2030-01-01T09:00", "2030-01-04T09:00"]


async def test_code_that_changes_its_schedules_changes_the_rows_and_a_pause_of_a_person_stays(pool):
    first = Code(pool, cron("0 9 * * *"))
    await first.says()
    before = await row(pool)
    await pool.execute("UPDATE schedules SET paused = TRUE")
    await time_passes(pool, SAY_EVERY + 1)
    await first.says(NOW + timedelta(minutes=1))
    assert (await row(pool))["paused"], "the agent was started again"
    assert (await row(pool))["updated_at"] == before["updated_at"], "what did not change is not written"
    await Code(pool, cron("0 10 * * *", catch_up=True)).says()
    changed = await row(pool)
    assert (changed["cron"], changed["missed"], changed["overlap"]) == ("0 10 * * *", "all", "allow")
    assert (changed["paused"], changed["next_at"]) == (True, NOW.replace(hour=10, minute=0))
    await Code(pool, cron("0 10 * * *", name="other")).says()
    retired = await row(pool)
    assert (retired["next_at"], retired["paused"]) == (None, True)
    assert retired["retired_at"] is not None
    assert (await row(pool, "cron.shop.other"))["next_at"] == NOW.replace(hour=10, minute=0)
    await Code(pool, cron("0 11 * * *")).says()
    again = await row(pool)
    assert (again["retired_at"], again["paused"]) == (None, True)
    assert [each["act"] for each in await pool.fetch("SELECT act FROM audit_log ORDER BY audit_id")] == [
        "schedule.set", "schedule.pause", "schedule.set", "schedule.set", "schedule.retire", "schedule.set",
        "schedule.retire",
    ]  # fmt: skip


async def test_code_without_schedules_retires_those_of_before_and_says_nothing_where_there_was_none(pool):
    bare = Code(pool)
    assert not await bare.says()
    assert await pool.fetchval("SELECT count(*) FROM schedule_declarations") == 0
    await Code(pool, cron("0 9 * * *")).says()
    assert await bare.says()
    assert (await row(pool))["retired_at"] is not None
    assert await tick(pool, NOW + timedelta(days=2)) == (0, [])


async def test_two_versions_side_by_side_do_not_take_turns(pool):
    old, new = Code(pool, cron("0 9 * * *")), Code(pool, cron("0 10 * * *"))
    for code in (old, new):
        await code.says()
    for _ in range(3):  # processes of both go on, and some of the old are started again
        await time_passes(pool, SILENT - 1)
        for code in (new, old, new, old):
            await code.says()
            assert (await row(pool))["cron"] == "0 10 * * *"
    for _ in range(3):  # no process of the new one is left: the old one holds when it is known
        assert (await row(pool))["cron"] == "0 10 * * *"
        await time_passes(pool, SILENT / 2 - 1)
        await old.says()
    assert (await row(pool))["cron"] == "0 9 * * *"
    await new.says()
    assert (await row(pool))["cron"] == "0 10 * * *", "it has come back, after the other one"


async def test_schedulers_that_look_at_once_agree(pool):
    codes = [Code(pool, cron(f"0 {hour} * * *")) for hour in range(6)]
    await asyncio.gather(*(code.declaration.say() for code in codes))
    await asyncio.gather(*(take_up(pool, NOW) for _ in range(6)))
    held = await pool.fetch("SELECT crons FROM schedule_declarations WHERE holds")
    assert [orjson.loads(each["crons"])[0]["cron"] for each in held] == [(await row(pool))["cron"]]
    assert await take_up(pool, NOW) == 0


async def test_a_scheduler_that_waited_for_another_one_finds_its_work_done(pool):
    await Code(pool, cron("0 9 * * *")).declaration.say()

    async def blocked(number: int) -> bool:
        waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
        return await pool.fetchval(waiting) == number

    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE schedules IN SHARE MODE")
        first = asyncio.create_task(take_up(pool, NOW))
        await eventually(lambda: blocked(1), message="the first one is about to write the schedule")
        second = asyncio.create_task(take_up(pool, NOW))
        await eventually(lambda: blocked(2), message="the second one waits, too")
        await transaction.rollback()
    assert [await first, await second] == [1, 0]


async def test_a_moment_that_is_due_is_a_run_before_the_code_changes_its_schedule(pool):
    await Code(pool, cron("0 9 * * *")).says()
    late = NOW + timedelta(hours=1)
    await Code(pool, cron("0 10 * * *")).says(late)
    assert (await row(pool))["cron"] == "0 9 * * *"
    await tick(pool, late)
    await take_up(pool, late)
    assert (await row(pool))["cron"] == "0 10 * * *"
    assert await moments(pool) == ["2030-01-01T09:00"]


@pytest.mark.parametrize("catch_up", [False, True])
async def test_marks_of_processes_that_ticked_themselves_go_on_without_a_gap_and_without_a_second_run(pool, catch_up):
    key = ("shop", "count", "0 9 * * * Europe/Rome")
    rome = [datetime(2029, 12, day, 8, tzinfo=UTC) for day in (29, 30, 31)] + [datetime(2030, 1, 1, 8, tzinfo=UTC)]
    await pool.execute("INSERT INTO cron_marks VALUES ($1, $2, $3, $4)", *key, rome[0])
    await pool.execute("INSERT INTO cron_marks VALUES ('other', 'count', $1, $2)", key[2], rome[0])
    # a process of before has made this run a moment ago, and not yet said so
    made = f"cron-{short_hash(*key, rome[1].isoformat())}"
    await pool.execute(
        "INSERT INTO runs (run_id, agent_name, workflow, task, task_hash, status, finished_at) "
        "VALUES ($1, 'shop', 'count', $2, 'x', 'completed', now())",
        made,
        orjson.dumps({"scheduled_for": rome[1].isoformat()}).decode(),
    )
    await Code(pool, cron("0 9 * * *", timezone="Europe/Rome", catch_up=catch_up)).says()
    assert (await row(pool))["next_at"] == rome[1]
    await tick(pool, NOW)
    expected = rome[1:] if catch_up else [rome[1], rome[3]]
    assert await moments(pool) == [moment.isoformat()[:16] for moment in expected]
    assert await pool.fetchval("SELECT array_agg(agent_name) FROM cron_marks") == ["other"]


async def test_what_no_code_declares_any_more_may_be_deleted_and_comes_back_with_its_code(settings, nc, pool):
    code = Code(pool, cron("0 9 * * *"))
    async with in_process(settings, nc) as platform:
        await code.says()
        with pytest.raises(Conflict):
            await platform.request("schedule.delete", {"name": NAME})
        await time_passes(pool, SILENT + 1)
        await platform.request("schedule.delete", {"name": NAME})
        with pytest.raises(NotFound):
            await platform.request("schedule.delete", {"name": NAME})
        await code.says()
        assert (await row(pool))["next_at"] is not None
        await Code(pool).says()
        assert (await platform.request("schedule.resume", {"name": NAME}))["schedule"]["next_at"] is None
        await platform.request("schedule.delete", {"name": NAME})
        assert await row(pool) is None


async def test_a_declaration_that_makes_no_sense_stops_no_other(pool):
    await Code(pool, cron("0 9 * * *")).says()
    for agent, crons in (("liar", "{}"), ("older", '[{"name": "x"}]'), ("newer", '[{"name": "a\\u0000b"}]')):
        await pool.execute("INSERT INTO schedule_declarations VALUES ($1, 'd', $2)", agent, crons)
    # the time zones of one machine need not be those of another
    await pool.execute(
        "INSERT INTO schedule_declarations SELECT 'far', 'd', replace(crons::text, 'UTC', 'Mars/Olympus')::json "
        "FROM schedule_declarations WHERE agent_name = 'shop'"
    )
    await Code(pool, cron("0 10 * * *")).says()
    assert (await row(pool))["cron"] == "0 10 * * *"
    far = await row(pool, "cron.far.count")
    assert (far["next_at"], "Mars/Olympus" in far["error"]) == (None, True)
    assert await pool.fetchval("SELECT count(*) FROM schedules") == 2
    assert await take_up(pool, NOW) == 0, "none of them is looked at again"


async def test_schedules_of_an_agent_under_test_follow_the_clock_of_the_test(harness):
    async with harness(Shop) as h:
        runs = "SELECT count(*) FROM runs WHERE status = 'completed' AND workflow = $1"
        await h.clock.advance(timedelta(days=2))
        assert await h.pool.fetchval(runs, "count") == 2
        assert await h.pool.fetchval(runs, "look") >= 2


@pytest.mark.parametrize(
    ("decorators", "wrong"),
    [
        ([cron("0 9 * * *"), cron("0 9 * * *", overlap="skip")], "twice, with different options"),
        ([cron("0 9 * * *", name="a"), cron("0 8 * * *", name="a")], "two schedules called 'a'"),
    ],
)
def test_schedules_that_contradict_each_other_are_refused(decorators, wrong):
    with pytest.raises(ValueError, match=wrong):
        schedules_of(agent_with(*decorators))


def test_a_schedule_that_is_written_twice_is_one():
    assert len(schedules_of(agent_with(cron("0 9 * * *"), cron("0 9 * * *")))) == 1
