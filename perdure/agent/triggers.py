"""What begins runs by itself: messages on NATS subjects and in JetStream streams, and the clock.

`@on("orders.created")`, `@cron("0 9 * * mon-fri")` and `@every("30s")` go on async methods of an agent, which become
workflows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from perdure.engine.definition import WORKFLOW_MARK, WorkflowMark
from perdure.schedules.expression import Schedule
from perdure.schedules.expression import every as _every

if TYPE_CHECKING:
    from perdure.agent.base import BaseAgent
    from perdure.messages import Overlap

F = TypeVar("F", bound=Callable[..., Any])
Filter: TypeAlias = Callable[[Any], bool]
TRIGGERS = "__perdure_triggers__"
_OVERLAPS: Final = ("allow", "skip", "buffer_one")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class OnSubject:
    """Messages of `subject` begin runs; of a JetStream stream when `stream` is given."""

    subject: str
    stream: str | None
    filter: Filter | None


@dataclass(frozen=True, slots=True)
class OnClock:
    """The moments of `schedule` begin runs; with `catch_up` also each one that was missed, else the last of them.

    `name` is that of the schedule; the workflow's is taken where there is none.
    """

    schedule: Schedule
    catch_up: bool
    overlap: Overlap
    name: str | None


Trigger: TypeAlias = OnSubject | OnClock


def on(subject: str, *, stream: str | None = None, filter: Filter | None = None) -> Callable[[F], F]:  # noqa: A002
    """Begin a run of the decorated workflow `(self, ctx, task)` for each message of `subject` (wildcards allowed).

    The message's JSON is the task, typed by its annotation (a pydantic model, …). `filter(task)` leaves messages out.
    Of a plain subject one replica takes each message, at most once; a `stream` is read by a durable consumer, at least
    once, and a message is acknowledged when its run is committed. `Nats-Msg-Id`, or the place in the stream, makes it
    one run. What is no JSON, does not fit the annotation or makes the filter raise goes to `dead_letters`.
    """
    if not subject or any(char.isspace() for char in subject):
        raise ValueError(f"@on needs a subject without spaces, not {subject!r}")
    return _marked(OnSubject(subject, stream, filter))


def cron(
    schedule: str,
    *,
    timezone: str = "UTC",
    catch_up: bool = False,
    overlap: Overlap | None = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """Begin a run of the decorated workflow at each moment of `schedule`: cron's five fields, or `@daily` and the like.

    The agent declares a schedule, `cron.<agent>.<name>` (the workflow's name unless given), which people may look at
    and pause; the scheduler makes one run for a moment, whatever process is up. The task is `{"scheduled_for": ISO
    time}`. Moments that the scheduler missed become one run for the last of them, and none while the run of an earlier
    one has not begun; with `catch_up` each has its run (of those missed, the newest 1,000). `overlap` says otherwise:
    `allow`, `buffer_one` (none while an earlier one has not begun) or `skip` (none while an earlier one goes on).
    Raises `ValueError` for what makes no sense.
    """
    return _clock(Schedule.parse(schedule, timezone), catch_up, overlap, name)


def every(
    interval: str | float | timedelta,
    *,
    catch_up: bool = False,
    overlap: Overlap | None = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """Begin a run of the decorated workflow every so often: `30s`, `1h30m`, a number of seconds, or a timedelta.

    It is `cron` with an interval of whole seconds, counted from 1970-01-01 00:00 UTC: each replica and each restart
    has the same moments. Raises `ValueError` for an interval that makes no sense.
    """
    return _clock(Schedule.parse(_every(interval)), catch_up, overlap, name)


def _clock(schedule: Schedule, catch_up: bool, overlap: Overlap | None, name: str | None) -> Callable[[F], F]:
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"the name of a schedule must match {_NAME.pattern}, and {name!r} does not")
    if overlap not in (None, *_OVERLAPS):
        raise ValueError(f"overlap must be one of {', '.join(_OVERLAPS)}, not {overlap!r}")
    if catch_up and overlap not in (None, "allow"):
        raise ValueError(
            f"catch_up makes a run for each moment, and overlap={overlap!r} leaves some out: give one of both"
        )
    return _marked(OnClock(schedule, catch_up, overlap or ("allow" if catch_up else "buffer_one"), name))


def _marked(trigger: Trigger) -> Callable[[F], F]:
    def mark(function: F) -> F:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"a trigger goes on an async method; {function.__qualname__} is not one")
        if getattr(function, WORKFLOW_MARK, None) is None:
            setattr(function, WORKFLOW_MARK, WorkflowMark(function.__name__, None))
        setattr(function, TRIGGERS, (*getattr(function, TRIGGERS, ()), trigger))
        return function

    return mark


def triggers_of(agent: BaseAgent) -> Sequence[tuple[str, Trigger]]:
    """Every trigger of an agent with the name of its workflow."""
    found: list[tuple[str, Trigger]] = []
    for attribute in dir(type(agent)):
        method = getattr(type(agent), attribute, None)
        mark = getattr(method, WORKFLOW_MARK, None)
        marked: Mapping[str, Any] = getattr(method, "__dict__", {})
        found += [(mark.name or attribute, one) for one in marked.get(TRIGGERS, ()) if mark is not None]
    return found
