from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.schedules.expression import Schedule, every


def moments(text, start, timezone="UTC", count=3):
    def walk(moment):
        schedule = Schedule.parse(text, timezone)
        while (moment := schedule.next_after(moment)) is not None:
            yield moment

    return [one.strftime("%Y-%m-%d %H:%M") for one in islice(walk(start), count)]


def at(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("* * * * *", at(2026, 1, 1, 0, 0, 30), ["2026-01-01 00:01", "2026-01-01 00:02", "2026-01-01 00:03"]),
        ("*/20 * * * *", at(2026, 1, 1), ["2026-01-01 00:20", "2026-01-01 00:40", "2026-01-01 01:00"]),
        ("0 9 * * mon-fri", at(2026, 1, 2, 10), ["2026-01-05 09:00", "2026-01-06 09:00", "2026-01-07 09:00"]),
        ("30 6 1,15 * *", at(2026, 1, 2), ["2026-01-15 06:30", "2026-02-01 06:30", "2026-02-15 06:30"]),
        ("0 0 29 feb *", at(2026, 1, 1), ["2028-02-29 00:00"]),
        ("0 0 13 * fri", at(2026, 2, 1), ["2026-02-06 00:00", "2026-02-13 00:00", "2026-02-20 00:00"]),
        ("0 12 * * 7", at(2026, 1, 1), ["2026-01-04 12:00", "2026-01-11 12:00", "2026-01-18 12:00"]),
        ("@monthly", at(2026, 1, 1), ["2026-02-01 00:00", "2026-03-01 00:00", "2026-04-01 00:00"]),
        ("@every 90m", at(2026, 1, 1, 1, 30), ["2026-01-01 03:00", "2026-01-01 04:30", "2026-01-01 06:00"]),
        ("@every 1d", at(2026, 1, 1, 0, 0, 1), ["2026-01-02 00:00", "2026-01-03 00:00"]),
    ],
)
def test_the_moments_of_a_schedule(text, start, expected):
    assert moments(text, start)[: len(expected)] == expected


def test_a_schedule_keeps_local_time_over_clock_changes():
    # Rome goes to summer time on 2026-03-29: 02:30 does not exist on that day
    assert moments("30 2 * * *", at(2026, 3, 27, 12), "Europe/Rome") == [
        "2026-03-28 01:30", "2026-03-30 00:30", "2026-03-31 00:30",
    ]  # fmt: skip
    # and back on 2026-10-25: 02:30 comes twice and counts once
    assert moments("30 2 * * *", at(2026, 10, 24, 12), "Europe/Rome", count=2) == [
        "2026-10-25 00:30",
        "2026-10-26 01:30",
    ]


def test_a_schedule_of_every_hour_goes_on_through_clock_changes():
    rome = "Europe/Rome"  # 2026-10-25: 02:00 to 03:00 comes twice, at 00:00 and 01:00 UTC
    assert moments("*/30 * * * *", at(2026, 10, 24, 23, 45), rome, count=6) == [
        "2026-10-25 00:00", "2026-10-25 00:30", "2026-10-25 01:00", "2026-10-25 01:30", "2026-10-25 02:00",
        "2026-10-25 02:30",
    ]  # fmt: skip
    assert moments("0 * * * *", at(2026, 3, 29, 0, 30), rome, count=2) == ["2026-03-29 01:00", "2026-03-29 02:00"]
    # half an hour comes twice there: 01:30 to 02:00
    assert moments("*/15 * * * *", at(2026, 4, 4, 14, 20), "Australia/Lord_Howe", count=6) == [
        "2026-04-04 14:30", "2026-04-04 14:45", "2026-04-04 15:00", "2026-04-04 15:15", "2026-04-04 15:30",
        "2026-04-04 15:45",
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 */3 * * sun", "0 * * * *", "@every 7m", "@every 11h"]
    ),
    st.sampled_from(["UTC", "Europe/Rome", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
    st.integers(0, 525_000).map(lambda minutes: at(2026, 1, 1) + timedelta(minutes=minutes)),
    st.integers(0, 40),
    st.integers(1, 20),
)
def test_the_newest_moments_of_a_span_are_those_that_a_walk_finds(text, zone, start, days, most):
    schedule = Schedule.parse(text, "UTC" if text.startswith("@every") else zone)
    end = start + timedelta(days=days)
    walk, moment = [], schedule.next_after(start - timedelta(microseconds=1))
    while moment is not None and moment <= end:
        walk.append(moment)
        moment = schedule.next_after(moment)
    assert schedule.between(start, end, most) == walk[-most:]
    assert walk == sorted(set(walk))


@pytest.mark.parametrize(
    ("timezone", "near"),
    [("Europe/Rome", at(2026, 3, 29)), ("Europe/Rome", at(2026, 10, 25)), ("Australia/Lord_Howe", at(2026, 4, 4)),
     ("Australia/Lord_Howe", at(2026, 10, 3)), ("Pacific/Apia", at(2011, 12, 29)),
     ("Antarctica/Troll", at(2026, 3, 29))],
)  # fmt: skip
@pytest.mark.parametrize("text", ["*/20 * * * *", "30 2 * * *", "15 0-3 * * *", "59 23 * * *"])
def test_each_moment_is_the_one_that_a_walk_over_all_minutes_finds(text, timezone, near):
    schedule, local = Schedule.parse(text, timezone), ZoneInfo(timezone)
    walk = []
    for minute in range(3 * 1440):
        found = near - timedelta(days=1) + timedelta(minutes=minute)
        wall = found.astimezone(local)
        if wall.minute in schedule.minutes and wall.hour in schedule.hours and (not wall.fold or "* * * *" in text[3:]):
            walk.append(found)
    assert schedule.between(walk[0], walk[-1], len(walk) + 1) == walk


def test_a_schedule_of_every_minute_converts_few_times_to_find_its_next(monkeypatch):
    converted = []
    convert = Schedule._utc
    monkeypatch.setattr(Schedule, "_utc", lambda self, wall: converted.append(wall) or convert(self, wall))
    assert moments("* * * * *", at(2026, 6, 1, 22, 58), "Europe/Rome", 1) == ["2026-06-01 22:59"]
    assert len(converted) < 30, "a backfill of a thousand moments held the scheduler for seconds"


@pytest.mark.parametrize("said", ["90s", "1m30s", 90, 90.0, timedelta(seconds=90)])
def test_an_interval_has_one_form_however_it_is_given(said):
    assert every(said) == "@every 90s"
    assert Schedule.parse(every(said)).next_after(at(2026, 1, 1)) == at(2026, 1, 1, 0, 1, 30)


def test_a_day_that_never_comes_has_no_moment():
    assert moments("0 0 31 feb *", at(2026, 1, 1)) == []


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * *", "* 24 * * *", "5-1 * * * *", "*/0 * * * *", "x * * * *", "* * 0 * *", "* * * 13 *"],
)
def test_a_schedule_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match="schedule"):
        Schedule.parse(text)


def test_an_unknown_time_zone_is_refused():
    with pytest.raises(ValueError, match="Nowhere"):
        Schedule.parse("* * * * *", "Nowhere/Land")
