"""Health of one process: named checks, each with a deadline, and the worst of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "critical"]
Finding: TypeAlias = tuple[Status, str]
Check: TypeAlias = Callable[[], Awaitable[Finding]]

CHECK_TIMEOUT: Final = 2.0
_RANK: Final[dict[Status, int]] = {"ok": 0, "warning": 1, "critical": 2}


class Health:
    """Checks that are asked for (`add`) and findings that are told (`tell`). The overall status is the worst."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[Check, Status]] = {}
        self._told: dict[str, Finding] = {}
        self._found: dict[str, Finding] = {}

    def add(self, name: str, check: Check, *, at_worst: Status = "critical") -> None:
        """Ask `check` for a finding at each report; an exception or 2 s without an answer count as `at_worst`."""
        self._checks[name] = (check, at_worst)

    def tell(self, name: str, status: Status, text: str = "") -> None:
        """Keep a finding until the next one of that name; `ok` without a text takes it away."""
        if status == "ok" and not text:
            self._told.pop(name, None)
        else:
            self._told[name] = (status, text)

    def status(self) -> Status:
        """The overall status by the last report and what was told since."""
        findings = [*self._found.values(), *self._told.values()]
        return max((status for status, _ in findings), key=_RANK.__getitem__, default="ok")

    def last(self) -> dict[str, Any]:
        """The last findings, without asking again, in the form of `report`."""
        findings = {**self._found, **self._told}
        checks = {name: {"status": status, "text": text} for name, (status, text) in findings.items()}
        return {"status": self.status(), "checks": checks}

    async def report(self) -> dict[str, Any]:
        """Ask every check at once: `{"status": …, "checks": {name: {"status": …, "text": …}}}`."""
        names = list(self._checks)
        findings = await asyncio.gather(*(self._ask(*self._checks[name]) for name in names))
        self._found = dict(zip(names, findings, strict=True))
        return self.last()

    @staticmethod
    async def _ask(check: Check, at_worst: Status) -> Finding:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                return await check()
        except TimeoutError:
            return at_worst, f"no answer within {CHECK_TIMEOUT:g} s"
        except Exception as error:  # noqa: BLE001 - whatever a check raises is its finding
            return at_worst, str(error) or type(error).__name__


class LoopLag:
    """How late the event loop runs what is due: `measure` is a loop to be run as a task, `check` a health check."""

    INTERVAL: Final = 0.5
    WARN_AFTER: Final = 0.5
    REMEMBER: Final = 30.0  # seconds for which a long stall is still shown

    def __init__(self) -> None:
        self._worst = 0.0
        self._worst_at = 0.0

    async def measure(self) -> None:
        """Measure for ever."""
        while True:
            due = time.monotonic() + self.INTERVAL
            await asyncio.sleep(self.INTERVAL)
            self.seen(time.monotonic() - due)

    def seen(self, lag: float) -> None:
        """Note a lag in seconds; the worst of the last 30 s is kept."""
        now = time.monotonic()
        if lag >= self._worst or now - self._worst_at > self.REMEMBER:
            self._worst, self._worst_at = max(lag, 0.0), now

    @property
    def worst(self) -> float:
        """The longest stall of the last 30 s, in seconds."""
        return self._worst if time.monotonic() - self._worst_at <= self.REMEMBER else 0.0

    async def check(self) -> Finding:
        """`warning` when something held the loop for half a second in the last 30 s."""
        if self.worst > self.WARN_AFTER:
            return "warning", f"the event loop was held for {self._worst:.1f} s: blocking code in an async function?"
        return "ok", f"{self._worst * 1000:.0f} ms"
