"""What a start may say beside its task: in which queue, how early, for whom, when, and under which key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from perdure import subjects

LONGEST: Final = 10 * 366 * 86_400.0  # seconds that a start may be put off
MOST_URGENT: Final = 1000
DEBOUNCE_ROUNDS: Final = (
    10  # a debounced run begins at the latest after so many of its pauses, unless it says otherwise
)


@dataclass(frozen=True, slots=True)
class StartOptions:
    """The options of one start; what is left out is None (`priority`: 0).

    `priority`: the higher one begins first. `fair_key`: runs of different keys take turns. `begin_at`: not before.
    `dedup_key`: while a run of the agent holds the key, a start with it is that run; it holds it until its end, or
    `dedup_window` seconds from its acceptance. `debounce_key`: the run begins when no start with the key has come for
    `debounce` seconds, with the newest task, and at the latest `debounce_max` seconds after the first.
    """

    queue: str | None = None
    priority: int = 0
    fair_key: str | None = None
    begin_at: datetime | None = None
    dedup_key: str | None = None
    dedup_window: float | None = None
    debounce_key: str | None = None
    debounce: float = 0.0
    debounce_max: float = 0.0

    @property
    def keyed(self) -> bool:
        """Whether the start may turn out to be another run."""
        return self.dedup_key is not None or self.debounce_key is not None

    def queue_of(self, agent: str) -> str | None:
        """The queue in which a run of `agent` stands; for a place in a line without a queue it is the agent's own."""
        placed = self.queue is not None or self.priority != 0 or self.fair_key is not None
        return (self.queue or agent) if placed else None

    def at(self, moment: datetime | None) -> StartOptions:
        """The same, not before `moment`."""
        return replace(self, begin_at=moment)


def start_options(
    *,
    now: datetime,
    queue: str | None = None,
    priority: int = 0,
    fair_key: str | None = None,
    delay: float | timedelta | None = None,
    start_at: datetime | None = None,
    **keys: Any,
) -> StartOptions | None:
    """Options as a workflow says them, None when they say nothing. `TypeError`, `ValueError`: naming the field."""
    if delay is not None and start_at is not None:
        raise ValueError("give delay or start_at, not both")
    if queue is not None:
        queue = _text(queue, "queue")
        if not subjects.AGENT_NAME.fullmatch(queue):
            raise ValueError(f"queue {queue!r} is not usable: it must match [a-z0-9][a-z0-9_-]{{0,62}}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be a whole number, not {type(priority).__name__}")
    if abs(priority) > MOST_URGENT:
        raise ValueError(f"priority must be from -{MOST_URGENT} to {MOST_URGENT}, not {priority}")
    options = StartOptions(queue, priority, _name(fair_key, "fair_key"), _moment(now, delay, start_at))
    if keys:
        options = _keyed(options, later=delay is not None or start_at is not None, **keys)
    return None if options == StartOptions() else options


def _keyed(
    options: StartOptions,
    *,
    later: bool,
    dedup_key: str | None = None,
    dedup_window: float | timedelta | None = None,
    debounce_key: str | None = None,
    debounce: float | timedelta | None = None,
    debounce_max: float | timedelta | None = None,
) -> StartOptions:
    if dedup_key is not None and debounce_key is not None:
        raise ValueError("give dedup_key or debounce_key, not both")
    for field, value, needed, key in (
        ("dedup_window", dedup_window, "dedup_key", dedup_key),
        ("debounce", debounce, "debounce_key", debounce_key),
        ("debounce_max", debounce_max, "debounce_key", debounce_key),
    ):
        if value is not None and key is None:
            raise ValueError(f"{field} needs a {needed}")
    if debounce_key is None:
        return replace(
            options, dedup_key=_name(dedup_key, "dedup_key"), dedup_window=_span(dedup_window, "dedup_window")
        )
    if later:
        raise ValueError("leave out delay and start_at: debounce says when it begins")
    pause = _span(debounce, "debounce")
    if pause is None:
        raise ValueError("debounce_key needs debounce, in seconds")
    longest = _span(debounce_max, "debounce_max") or pause * DEBOUNCE_ROUNDS
    if longest < pause:
        raise ValueError("debounce_max must be at least debounce")
    name = _name(debounce_key, "debounce_key")
    return replace(options, debounce_key=name, debounce=pause, debounce_max=longest)


def _name(value: Any, what: str) -> str | None:
    if value is not None and not 0 < len(_text(value, what)) <= 256:
        raise ValueError(f"{what} must have 1 to 256 characters")
    return None if value is None else str(value)


def _span(value: Any, what: str) -> float | None:
    if value is None:
        return None
    seconds = _seconds(value, what)
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"{what} must be more than 0 and at most {LONGEST:g} seconds, not {seconds}")
    return seconds


def _seconds(value: Any, what: str) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    return float(seconds)


def _moment(now: datetime, delay: Any, start_at: Any) -> datetime | None:
    if start_at is not None:
        if not isinstance(start_at, datetime) or start_at.tzinfo is None:
            raise TypeError("start_at must be a datetime with a time zone")
        return start_at.astimezone(UTC) if start_at > now else None
    if delay is None:
        return None
    seconds = _seconds(delay, "delay")
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"delay must be from 0 to {LONGEST:g} seconds, not {seconds}")
    return now + timedelta(seconds=seconds) if seconds else None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, not {type(value).__name__}")
    return value
