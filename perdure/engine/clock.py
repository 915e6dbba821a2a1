"""The engine's clock: real in a process, controlled in tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final, Protocol

TIMER_SOON: Final = 0.5
"""Seconds between the scheduler's looks at timers: of those that are due before that, it is told."""


class Clock(Protocol):
    """What the engine asks of time; every timer of a run goes through one of these."""

    def now(self) -> datetime:
        """The time, in UTC."""

    async def sleep_until(self, moment: datetime) -> None:
        """Come back at `moment`, at once when it is past."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time, in UTC."""
        return datetime.now(UTC)

    async def sleep_until(self, moment: datetime) -> None:
        """Come back at `moment`; a long wait is cut, so that a clock that was set is noticed within a minute."""
        while (left := (moment - self.now()).total_seconds()) > 0:
            await asyncio.sleep(min(left, 60.0))
