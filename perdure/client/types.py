"""What the client hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "dead"})
"""States that a run leaves by `resume` alone."""
STOPPED: Final = TERMINAL | {"blocked", "needs_review"}
"""States in which a run does nothing until a person does something."""
TERMINAL_EVENTS: Final = frozenset(f"run.{status}" for status in TERMINAL)


class RunEvent(TypedDict):
    """One event of a run, as it travels on `run.events.<run_id>`; `time` is ISO 8601 in UTC."""

    seq: int
    type: str
    run_id: str
    agent: str
    time: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs, newest first, each as `run.list` gives it; `next_cursor` is None on the last page."""

    runs: list[dict[str, Any]]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some conversations, last used first; each has `session_id`, `messages`, `tokens`, `cost` and times."""

    sessions: list[dict[str, Any]]
    next_cursor: str | None


BulkAction = Literal["cancel", "terminate", "pause", "resume", "restart", "signal"]
"""What `Client.bulk` can do to many runs."""


@dataclass(frozen=True, slots=True)
class BulkCount:
    """How many runs a filter finds, `more` if beyond that number; `cursor` is where `Client.bulk` begins with them."""

    matched: int
    more: bool
    cursor: str


@dataclass(frozen=True, slots=True)
class BulkPage:
    """What became of some runs.

    `skipped` had a state that the action does not fit; of `failed` each has `run_id` and `error`.
    """

    done: int
    skipped: int
    failed: list[dict[str, Any]]
