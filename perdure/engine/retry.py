"""When a failed step is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from perdure.errors import PermanentError, RetryableError, WorkflowMisuse


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step is tried, and how long the pauses are.

    `max_attempts` counts the first try; pauses begin at `delay` seconds, grow by `factor` and end at `max_delay`.
    With `jitter` a pause is drawn between half of it and all of it, so that many failed steps do not return at once.
    Raises `ValueError` for values that make no sense.
    """

    max_attempts: int = 3
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"Retry.max_attempts is {self.max_attempts}; it counts the first try, so it is at least 1")
        if self.delay < 0 or self.max_delay < 0 or self.factor < 1:
            raise ValueError("Retry.delay and Retry.max_delay are at least 0 seconds and Retry.factor is at least 1")

    def pause(self, attempt: int, error: BaseException, draw: Callable[[], float] = random.random) -> float | None:
        """Seconds until the try after `attempt` (from 1), or `None` when there is none."""
        hopeless = isinstance(error, PermanentError | WorkflowMisuse) or not isinstance(error, Exception)
        if attempt >= self.max_attempts or hopeless:
            return None
        if isinstance(error, RetryableError) and error.retry_after is not None:
            return max(0.0, error.retry_after)
        pause = min(self.delay * self.factor ** min(attempt - 1, 64), self.max_delay)
        return pause * (0.5 + draw() / 2) if self.jitter else pause


ONCE = Retry(max_attempts=1)
