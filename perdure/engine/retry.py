"""When a failed step is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from perdure.errors import PermanentError, RetryableError, WorkflowMisuse


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step is tried, how long the pauses are, and after which errors.

    `max_attempts` counts the first try; pauses begin at `delay` seconds, grow by `factor` and end at `max_delay`.
    With `jitter` a pause is drawn between half of it and all of it, so that many failed steps do not return at once.
    `max_time` is a budget in seconds from the beginning of the first try, over restarts too: a try that would begin
    after it is not made. Only errors of a class in `on` are tried again, and none of a class in `give_up_on`, which is
    the stronger; a `RetryableError` is always one of `on`, a `PermanentError` never. Raises `ValueError` or `TypeError`
    for values that make no sense.
    """

    max_attempts: int = 3
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True
    max_time: float | timedelta | None = None
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"Retry.max_attempts is {self.max_attempts}; it counts the first try, so it is at least 1")
        if self.delay < 0 or self.max_delay < 0 or self.factor < 1:
            raise ValueError("Retry.delay and Retry.max_delay are at least 0 seconds and Retry.factor is at least 1")
        for field in ("on", "give_up_on"):
            given = getattr(self, field)
            classes = (given,) if isinstance(given, type) else tuple(given)
            if not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
                raise TypeError(f"Retry.{field} takes classes of exceptions, like (OSError, TimeoutError)")
            object.__setattr__(self, field, classes)
        if self.max_time is not None and self._budget() < 0:
            raise ValueError(f"Retry.max_time is {self.max_time}; it is at least 0 seconds, or None for no bound")

    def pause(
        self,
        attempt: int,
        error: BaseException,
        draw: Callable[[], float] = random.random,
        *,
        elapsed: Callable[[], float] = lambda: 0.0,
    ) -> float | None:
        """Seconds until the try after `attempt` (from 1), or `None` when there is none.

        `elapsed` tells the seconds since the first try began; it is only asked under a budget.
        """
        if attempt >= self.max_attempts or not self._worth_it(error):
            return None
        if isinstance(error, RetryableError) and error.retry_after is not None:
            pause = max(0.0, error.retry_after)
        else:
            pause = min(self.delay * self.factor ** min(attempt - 1, 64), self.max_delay)
            pause = pause * (0.5 + draw() / 2) if self.jitter else pause
        return None if self.max_time is not None and elapsed() + pause > self._budget() else pause

    def _budget(self) -> float:
        return self.max_time.total_seconds() if isinstance(self.max_time, timedelta) else float(self.max_time or 0)

    def _worth_it(self, error: BaseException) -> bool:
        if isinstance(error, PermanentError | WorkflowMisuse) or not isinstance(error, Exception):
            return False
        return isinstance(error, (RetryableError, *self.on)) and not isinstance(error, self.give_up_on)


ONCE = Retry(max_attempts=1)
