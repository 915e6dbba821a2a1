"""Crashes at named points, for tests of what an agent does about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from perdure.engine import points
from perdure.errors import RunSuspended

POINTS = tuple(points.AGENT)

_listeners: list[Callable[[str], bool]] = []


@dataclass(slots=True)
class CrashPlan:
    """Where a crash strikes, and how often it has."""

    point: str
    step: str | None
    left: int
    struck: int = 0


def on_crash(listener: Callable[[str], bool]) -> Callable[[], None]:
    """Call `listener(run_id)` when a crash strikes; it answers whether the run (or "") was its own."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


@contextmanager
def crash_at(point: str, *, step: str | None = None, times: int = 1) -> Iterator[CrashPlan]:
    """Kill the agent under test when it reaches `point` (of `step`, if given), `times` times.

    The points are those of `perdure.testing.crash.POINTS`. Like kill -9: nothing of what the process holds is written,
    and no `finally` of it reaches the journal. Raises `ValueError` for an unknown point, and an `AssertionError` at the
    end when it was never reached.
    """
    if point not in POINTS:
        raise ValueError(f"there is no point {point!r}; the points are {', '.join(POINTS)}")
    plan = CrashPlan(point, step, times)

    def strike(reached: str, run_id: str, name: str) -> None:
        if plan.left <= 0 or reached != point or (step is not None and name != step):
            return
        if sum(listener(run_id) for listener in _listeners):  # every listener hears of it
            plan.left -= 1
            plan.struck += 1
            raise RunSuspended

    remove = points.install(strike)
    try:
        yield plan
    finally:
        remove()
    if plan.struck == 0:
        raise AssertionError(f"the point {point!r}{f' of step {step!r}' if step else ''} was never reached")
