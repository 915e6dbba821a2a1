"""What begins runs by itself: messages on NATS subjects and in JetStream streams, and the clock.

`@on("orders.created")` and `@cron("0 9 * * mon-fri")` go on async methods of an agent, which become workflows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from perdure.agent.cron import Schedule
from perdure.engine.definition import WORKFLOW_MARK, WorkflowMark

if TYPE_CHECKING:
    from perdure.agent.base import BaseAgent

F = TypeVar("F", bound=Callable[..., Any])
Filter: TypeAlias = Callable[[Any], bool]
TRIGGERS = "__perdure_triggers__"


@dataclass(frozen=True, slots=True)
class OnSubject:
    """Messages of `subject` begin runs; of a JetStream stream when `stream` is given."""

    subject: str
    stream: str | None
    filter: Filter | None


@dataclass(frozen=True, slots=True)
class OnClock:
    """The moments of `schedule` begin runs; with `catch_up` also each one that was missed, else the last of them."""

    schedule: Schedule
    catch_up: bool


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


def cron(schedule: str, *, timezone: str = "UTC", catch_up: bool = False) -> Callable[[F], F]:
    """Begin a run of the decorated workflow at each moment of `schedule`: cron's five fields, or `@daily` and the like.

    The task is `{"scheduled_for": ISO time}`. All replicas together make one run for a moment. Moments that passed
    while no process was up become one run for the last of them, or one each with `catch_up` (at most 1,000). Raises
    `ValueError` for a schedule that makes no sense.
    """
    return _marked(OnClock(Schedule.parse(schedule, timezone), catch_up))


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
