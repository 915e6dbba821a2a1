from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from perdure.client import Client
from perdure.engine import points
from perdure.errors import InvalidRequest, NotFound
from services.scheduler.schedules import Ticker
from services.scheduler.service import Scheduler
from tests.agents.queued import INSIDE_TABLE, Queued
from tests.platform import in_process
from tests.queue_support import all_ended

START = datetime(2030, 3, 1, 8, 30, tzinfo=UTC)


class Clock:
    """The time of a scheduler, set by the test."""

    def __init__(self, moment=START):
        self.moment = moment

    def now(self):
        return self.moment


@pytest.fixture
async def timed(settings, nc):
    """A platform whose scheduler answers and ticks at the test's time; the ticking is the test's, too."""
    clock = Clock()
    async with in_process(settings, nc) as platform:
        await platform.services[1].stop()
        scheduler = Scheduler(settings.model_copy(update={"instance_id": "timed"}), clock=clock)
        await platform.start(scheduler)
        for task in asyncio.all_tasks():
            if "schedules" in task.get_name():
                task.cancel()
        platform.clock = clock
        yield platform


async def ran(pool):
    """The moments that became runs, in the order in which they did."""
    rows = await pool.fetch("SELECT task FROM runs ORDER BY turn")
    return [orjson.loads(row["task"])["scheduled_for"][:16] for row in rows]


async def make(platform, **said):
    said = {"name": "s", "agent": "queued", "cron": "0 9 * * *", **said}
    return (await platform.request("schedule.set", said))["schedule"]


async def test_a_moment_is_one_run_over_two_schedulers_and_says_for_when_it_is(timed, nc, pool):
    await pool.execute(INSIDE_TABLE)
    made = await make(timed, task={"n": 7}, queue="line", priority=2)
    assert (made["next_at"], made["task"]) == ("2030-03-01T09:00:00+00:00", {"n": 7})
    tickers = [Ticker(pool, nc, timed.clock) for _ in range(4)]
    assert sum(await asyncio.gather(*(one.tick() for one in tickers))) == 0
    for day in range(1, 4):
        timed.clock.moment = datetime(2030, 3, day, 9, tzinfo=UTC)
        assert sum(await asyncio.gather(*(one.tick() for one in tickers))) == 1
    assert await ran(pool) == [f"2030-03-0{day}T09:00" for day in range(1, 4)]
    shown = (await timed.request("schedule.get", {"name": "s"}))["schedule"]
    assert shown["last_at"] == "2030-03-03T09:00:00+00:00"
    assert shown["next_at"] == "2030-03-04T09:00:00+00:00"
    run = await timed.run(shown["last_run_id"])
    assert run["task"] == {"scheduled_for": "2030-03-03T09:00:00+00:00", "n": 7}
    assert (run["queue"], run["priority"]) == ("line", 2)
    await timed.agent(Queued)
    await all_ended(pool, 3)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"missed": "skip"}, []),
        ({"missed": "latest"}, ["2030-03-05T09:00"]),
        ({"missed": "all"}, [f"2030-03-0{day}T09:00" for day in range(1, 6)]),
        ({"missed": "all", "missed_limit": 2}, ["2030-03-04T09:00", "2030-03-05T09:00"]),
        ({"missed": "all", "overlap": "skip"}, ["2030-03-05T09:00"]),
    ],
)
async def test_missed_moments_are_what_the_schedule_says(timed, nc, pool, said, expected):
    await make(timed, **said)
    ticker = Ticker(pool, nc, timed.clock)
    timed.clock.moment = datetime(2030, 3, 5, 12, tzinfo=UTC)
    assert await ticker.tick() == 1
    assert await ticker.tick() == 0
    assert await ran(pool) == expected
    timed.clock.moment = datetime(2030, 3, 6, 9, 0, 20, tzinfo=UTC)  # a little late is not missed
    assert await ticker.tick() == 1
    on_time = [] if "overlap" in said else ["2030-03-06T09:00"]
    assert await ran(pool) == expected + on_time


async def test_a_moment_is_left_out_while_the_run_of_an_earlier_one_goes_on(timed, nc, pool):
    await make(timed, cron="* * * * *", overlap="skip")
    ticker = Ticker(pool, nc, timed.clock)
    timed.clock.moment = START + timedelta(minutes=1)
    for _ in range(3):
        assert await ticker.tick() == 1
        timed.clock.moment += timedelta(minutes=1)
    assert await ran(pool) == ["2030-03-01T08:31"]
    await pool.execute("UPDATE runs SET status = 'completed', finished_at = now()")
    assert await ticker.tick() == 1
    assert await ran(pool) == ["2030-03-01T08:31", "2030-03-01T08:34"]


async def test_a_schedule_pauses_goes_on_changes_and_goes(timed, nc, pool):
    ticker = Ticker(pool, nc, timed.clock)
    await make(timed, cron="0 * * * *")
    await timed.request("schedule.pause", {"name": "s"})
    timed.clock.moment = START + timedelta(hours=3)
    assert await ticker.tick() == 0
    resumed = (await timed.request("schedule.resume", {"name": "s"}))["schedule"]
    assert resumed["next_at"] == "2030-03-01T12:00:00+00:00", "what passed during the pause is not made up for"
    timed.clock.moment = START + timedelta(hours=4)  # 12:30: one is due
    same = await make(timed, cron="0 * * * *", task=1)
    assert same["next_at"] == "2030-03-01T12:00:00+00:00", "a change of the task loses no moment"
    other = await make(timed, cron="15 * * * *", task={"a": 1})
    assert other["next_at"] == "2030-03-01T13:15:00+00:00"
    timed.clock.moment = START + timedelta(hours=5)
    assert await ticker.tick() == 1
    await timed.request("schedule.delete", {"name": "s"})
    timed.clock.moment = START + timedelta(hours=9)
    assert await ticker.tick() == 0
    assert await ran(pool) == ["2030-03-01T13:15"]
    for verb in ("get", "pause", "resume", "delete"):
        with pytest.raises(NotFound, match="'s'"):
            await timed.request(f"schedule.{verb}", {"name": "s"})


async def test_a_backfill_makes_the_runs_that_are_not_there(timed, nc, pool):
    ticker = Ticker(pool, nc, timed.clock)
    await make(timed)
    timed.clock.moment = datetime(2030, 3, 3, 9, tzinfo=UTC)
    await ticker.tick()
    span = {"name": "s", "from": "2030-02-28T09:00:00Z", "to": "2030-03-03T09:00:00Z"}
    filled = await timed.request("schedule.backfill", span)
    assert (filled["moments"], len(filled["run_ids"])) == (4, 3), "the moment that has a run keeps it"
    assert sorted(await ran(pool)) == [f"2030-{day}T09:00" for day in ("02-28", "03-01", "03-02", "03-03")]
    assert (await timed.request("schedule.backfill", span))["run_ids"] == []
    for field, wrong in (
        ("to", {"to": "2031-01-01T00:00:00Z"}),
        ("from", {"from": "2030-03-03T10:00:00Z"}),
        ("from", {"from": "yesterday"}),
        ("to", {"from": "2020-01-01T00:00:00Z"}),
    ):
        with pytest.raises(InvalidRequest, match=f"field '{field}'"):
            await timed.request("schedule.backfill", {**span, **wrong})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "a b"}),
        ("agent", {"agent": "No Agent"}),
        ("cron", {"cron": "often"}),
        ("cron", {"cron": "61 * * * *"}),
        ("cron", {"cron": ""}),
        ("cron", {"cron": "0 0 31 2 *"}),
        ("timezone", {"timezone": "Mars/Olympus"}),
        ("timezone", {"timezone": "../etc/passwd"}),
        ("missed", {"missed": "some"}),
        ("missed_limit", {"missed_limit": 0}),
        ("missed_limit", {"missed_limit": 1001}),
        ("overlap", {"overlap": "queue"}),
        ("paused", {"paused": "yes"}),
        ("queue", {"queue": 5}),
        ("priority", {"priority": -5000}),
    ],
)
async def test_a_bad_schedule_is_refused_by_name(timed, pool, field, wrong):
    with pytest.raises(InvalidRequest, match=f"field '{field}'"):
        await make(timed, **wrong)
    assert await pool.fetchval("SELECT count(*) FROM schedules") == 0


async def test_a_schedule_that_no_longer_makes_sense_is_paused_and_keeps_no_other_from_its_moment(timed, nc, pool):
    for name in ("a", "b"):
        await make(timed, name=name)
    await pool.execute("UPDATE schedules SET timezone = 'Gone/Land' WHERE name = 'a'")
    timed.clock.moment = datetime(2030, 3, 1, 9, tzinfo=UTC)
    ticker = Ticker(pool, nc, timed.clock)
    assert await ticker.tick() == 2
    assert len(await ran(pool)) == 1
    broken = (await timed.request("schedule.get", {"name": "a"}))["schedule"]
    assert broken["paused"]
    assert "Gone/Land" in broken["error"]


async def test_schedules_are_listed_a_page_at_a_time(timed, settings):
    async with Client(settings) as client:
        for name in "abc":
            await client.set_schedule(name, "queued" if name < "c" else "other", "@daily", timezone="Europe/Rome")
        page = await client.schedules(limit=2)
        assert [one["name"] for one in page.schedules] == ["a", "b"]
        rest = await client.schedules(limit=2, cursor=page.next_cursor)
        assert ([one["name"] for one in rest.schedules], rest.next_cursor) == (["c"], None)
        assert [one["name"] for one in (await client.schedules(agent="other")).schedules] == ["c"]
        assert (await client.pause_schedule("a"))["paused"]
        assert not (await client.resume_schedule("a"))["paused"]
        assert await client.backfill_schedule("a", START - timedelta(days=2), START)
        assert (await client.get_schedule("a"))["timezone"] == "Europe/Rome"
        await client.delete_schedule("a")


async def test_a_scheduler_that_dies_at_a_tick_loses_no_moment_and_repeats_none(timed, nc, pool):
    await make(timed)
    ticker = Ticker(pool, nc, timed.clock)
    for day, point, left in ((1, "schedule.before", 0), (2, "schedule.after", 2)):
        timed.clock.moment = datetime(2030, 3, day, 9, tzinfo=UTC)

        def die(reached, _run_id, _name, point=point):
            if reached == point:
                raise ConnectionResetError(point)

        remove = points.install(die)
        with pytest.raises(ConnectionResetError):
            await ticker.tick()
        remove()
        assert await pool.fetchval("SELECT count(*) FROM runs") == left
        await ticker.tick()
        assert len(await ran(pool)) == day
    assert await pool.fetchval("SELECT count(*) FROM runs WHERE status = 'pending'") == 2, "the sweeper's to wake"
