"""The keyword arguments of every start: of `Client.start` and `Client.ask`, of `ctx.start` and `ctx.call`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, TypedDict


class StartKeywords(TypedDict, total=False):
    """Where a run stands, when it begins, and under which key; spans of time are seconds or a `timedelta`."""

    queue: str | None
    priority: int
    fair_key: str | None
    delay: float | timedelta | None
    start_at: datetime | None
    dedup_key: str | None
    dedup_window: float | timedelta | None
    debounce_key: str | None
    debounce: float | timedelta | None
    debounce_max: float | timedelta | None


SPANS: Final = frozenset({"delay", "dedup_window", "debounce", "debounce_max"})  # keywords that last so long
