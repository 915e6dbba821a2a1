"""When something is due: the five fields of cron (minute, hour, day of month, month, day of week), or an interval."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_NAMES = {
    3: {
        name: at
        for at, name in enumerate(
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], start=1
        )
    },
    4: {name: at for at, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])},
}
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_PART = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<every>\d+))?")
_INTERVAL = re.compile(r"@every +(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_LONGEST_INTERVAL = timedelta(days=366)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_AHEAD = 366 * 5


@dataclass(frozen=True, slots=True)
class Schedule:
    """A parsed schedule in a time zone; `next_after` gives its moments.

    An `interval` is counted from 1970-01-01 00:00 UTC, so that whoever reads it finds the same moments.
    """

    text: str
    zone: ZoneInfo
    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    any_day: bool = True
    any_weekday: bool = True
    interval: timedelta | None = None

    @classmethod
    def parse(cls, text: str, timezone: str = "UTC") -> Schedule:
        """Read `0 9 * * mon-fri`, `@daily` or `@every 1h30m`. Raises `ValueError` naming what makes no sense."""
        zone = time_zone(timezone)
        if text.strip().startswith("@every"):
            return cls._of_interval(text.strip(), zone)
        fields = _SHORT.get(text.strip(), text).split()
        if len(fields) != 5:
            raise ValueError(
                f"schedule {text!r} must have 5 fields: minute hour day-of-month month day-of-week; "
                "or be like @daily or @every 30s"
            )
        minutes, hours, days, months, weekdays = (_field(text, at, said) for at, said in enumerate(fields))
        return cls(
            " ".join(fields), zone, minutes, hours, days, months,
            frozenset(day % 7 for day in weekdays), fields[2] == "*", fields[4] == "*",
        )  # fmt: skip

    @classmethod
    def _of_interval(cls, text: str, zone: ZoneInfo) -> Schedule:
        match = _INTERVAL.fullmatch(text)
        if match is None or not any(match.groups()):
            raise ValueError(f"schedule {text!r} is not understood: an interval is like @every 30s, 1h30m or 7d")
        days, hours, minutes, seconds = (min(int(each or 0), 10**9) for each in match.groups())
        span = days * 86_400 + hours * 3600 + minutes * 60 + seconds
        if not 1 <= span <= _LONGEST_INTERVAL.total_seconds():
            raise ValueError(f"schedule {text!r}: an interval is a second at least, and 366 days at most")
        if zone.key != "UTC":
            raise ValueError(f"schedule {text!r} has no time zone: leave {zone.key!r} out")
        return cls(f"@every {span}s", zone, interval=timedelta(seconds=span))

    def _day_matches(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return in_month and in_week
        return in_month or in_week  # cron's own rule: both given means either

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment after `moment` (both in UTC); None when there is none within five years.

        A local time that a clock change skips is passed over. One that comes twice counts once, but for schedules of
        every hour, which go on through both.
        """
        if self.interval is not None:
            return _EPOCH + ((moment - _EPOCH) // self.interval + 1) * self.interval
        day = moment.astimezone(self.zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        for _ in range(_LOOK_AHEAD):
            if self._day_matches(day):
                for hour in sorted(self.hours):
                    found = self._in_hour(day.replace(hour=hour), moment)
                    if found is not None:
                        return found
            day += timedelta(days=1)
        return None

    def _in_hour(self, hour: datetime, moment: datetime) -> datetime | None:
        """The first moment after `moment` that lies in a local hour, in UTC."""
        last = self._utc(hour.replace(minute=59))
        if max(last) <= moment:
            return None
        first = self._utc(hour)
        if first[0] == first[1] and last[0] == last[1] == first[0] + timedelta(minutes=59):  # no clock changes in it
            moments = (first[0] + timedelta(minutes=minute) for minute in sorted(self.minutes))
            return next((at for at in moments if at > moment), None)
        for fold in (0, 1) if len(self.hours) == 24 else (0,):
            for minute in sorted(self.minutes):
                wall = hour.replace(minute=minute, tzinfo=self.zone, fold=fold)
                found = wall.astimezone(UTC)
                exists = found.astimezone(self.zone).replace(tzinfo=None) == wall.replace(tzinfo=None)
                if exists and found > moment:
                    return found
        return None

    def _utc(self, wall: datetime) -> tuple[datetime, datetime]:
        """A local time in UTC: the first time that it comes, and the second."""
        return (
            wall.replace(tzinfo=self.zone, fold=0).astimezone(UTC),
            wall.replace(tzinfo=self.zone, fold=1).astimezone(UTC),
        )

    def between(self, first: datetime, last: datetime, most: int) -> list[datetime]:
        """The newest `most` moments from `first` to `last`, both included (in UTC), in order."""
        span = timedelta(hours=1)
        while True:
            begin = max(first, last - span)
            found: deque[datetime] = deque(maxlen=most)
            moment = self.next_after(begin - timedelta(microseconds=1))
            while moment is not None and moment <= last:
                found.append(moment)
                moment = self.next_after(moment)
            if begin == first or len(found) == most:
                return list(found)
            span *= 4


def every(interval: str | float | timedelta) -> str:
    """The expression of an interval: `30s`, `1h30m`, a number of seconds or a timedelta. Raises `ValueError`."""
    if isinstance(interval, str):
        return Schedule.parse(f"@every {interval.strip()}").text
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
    if not math.isfinite(seconds) or seconds != int(seconds):
        raise ValueError(f"an interval is whole seconds, not {seconds!r}")
    return Schedule.parse(f"@every {int(seconds)}s").text


def time_zone(name: str) -> ZoneInfo:
    """A time zone of the IANA database. Raises `ValueError` naming one that is not there."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}; give a name like Europe/Rome, or UTC") from error


def _field(text: str, at: int, said: str) -> frozenset[int]:
    name, lowest, highest = _FIELDS[at]
    found: set[int] = set()
    for part in said.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"schedule {text!r}: {name} {part!r} is not understood")
        every = int(match["every"] or 1)
        if match["first"] == "*":
            first, last = lowest, highest
        else:
            first = _number(text, at, match["first"])
            last = _number(text, at, match["last"]) if match["last"] else (highest if match["every"] else first)
        if not (lowest <= first <= last <= highest) or every < 1:
            raise ValueError(f"schedule {text!r}: {name} {part!r} is not within {lowest} to {highest}")
        found.update(range(first, last + 1, every))
    return frozenset(found)


def _number(text: str, at: int, said: str) -> int:
    names = _NAMES.get(at, {})
    if said in names:
        return names[said]
    if not said.isdecimal():
        raise ValueError(f"schedule {text!r}: {_FIELDS[at][0]} {said!r} is not understood")
    return int(said)
