"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta


class FakeClock:
    """Time for an agent under test: `await clock.advance(30)` lets 30 seconds pass, timer by timer.

    `settle(target)` is called for each step of an advance: it lets the agent come to rest and answers with the next
    moment at or before `target` at which something is due, or `None`.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime.now(UTC)
        self._moved = asyncio.Event()
        self.settle: Callable[[datetime], Awaitable[datetime | None]] | None = None

    def now(self) -> datetime:
        """The time, in UTC."""
        return self._now

    async def sleep_until(self, moment: datetime) -> None:
        """Come back when the clock has been moved to `moment`."""
        while self._now < moment:
            await self._moved.wait()

    async def advance(self, seconds: float | timedelta) -> None:
        """Let time pass. Whatever is due on the way happens in its order, at its own moment."""
        span = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        if span < timedelta(0):
            raise ValueError(f"time does not go back: advance({seconds!r})")
        target = self._now + span
        while self.settle is not None and (due := await self.settle(target)) is not None:
            self._move(max(due, self._now))
        self._move(target)
        if self.settle is not None:
            await self.settle(target)

    def _move(self, moment: datetime) -> None:
        self._now = moment
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
