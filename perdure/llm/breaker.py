"""A circuit breaker: an endpoint that keeps failing is left alone for a while, so that callers fail over at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from perdure.errors import RetryableError


class Breaker:
    """Opens after `failures` failures in a row; lets one try through after `pause` seconds, doubling up to `longest`.

    One process's view of one endpoint. `clock` counts seconds.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        pause: float = 2.0,
        longest: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = failures
        self._first_pause = pause
        self._longest = longest
        self._clock = clock
        self._failures = 0
        self._pause = pause
        self._closed_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused right now."""
        return self._failures >= self._most and (self._probing or self._clock() < self._closed_at)

    def check(self, what: str) -> None:
        """Let a call through. Raises `RetryableError` with the time to wait while the breaker is open."""
        if self._failures < self._most:
            return
        wait = self._closed_at - self._clock()
        if wait > 0 or self._probing:
            raise RetryableError(
                f"{what} failed {self._failures} times in a row and is left alone for a moment",
                retry_after=max(wait, 0.5),
            )
        self._probing = True

    def succeeded(self) -> None:
        """The endpoint answered, be it with a refusal."""
        self._failures = 0
        self._pause = self._first_pause
        self._probing = False

    def failed(self) -> None:
        """The endpoint did not answer, or not sensibly."""
        self._failures += 1
        if self._failures >= self._most:
            self._closed_at = self._clock() + self._pause
            self._pause = min(self._pause * 2, self._longest)
        self._probing = False

    def gave_up(self) -> None:
        """The caller left before there was an outcome."""
        self._probing = False
