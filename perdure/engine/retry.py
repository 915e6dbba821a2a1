"""When a failed step is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast

from perdure.engine.waits import seconds_of
from perdure.errors import PermanentError, RetryableError, WorkflowMisuse

STEEPEST: Final = 1000


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step is tried, how long the pauses are, and after which errors.

    `max_attempts` counts the first try; pauses begin at `delay` seconds, grow by `factor` and end at `max_delay`.
    Durations are seconds or a timedelta. With `jitter` a pause is drawn between half of it and all of it, so that many
    failed steps do not return at once.
    `max_time` is a budget in seconds from the beginning of the first try, over restarts too: a try that would begin
    after it is not made. Only errors of a class in `on` are tried again, and none of a class in `give_up_on`, which is
    the stronger; a `RetryableError` is always one of `on`, a `PermanentError` never. Raises `ValueError` or `TypeError`
    for values that make no sense.
    """

    max_attempts: int = 3
    delay: float | timedelta = 1.0
    factor: float = 2.0
    max_delay: float | timedelta = 60.0
    jitter: bool = True
    max_time: float | timedelta | None = None
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise TypeError(f"Retry.max_attempts must be a whole number, not {type(self.max_attempts).__name__}")
        if self.max_attempts < 1:
            raise ValueError(f"Retry.max_attempts is {self.max_attempts}; it counts the first try, so it is at least 1")
        for field in ("delay", "max_delay", "max_time"):
            if (given := getattr(self, field)) is not None:
                object.__setattr__(self, field, seconds_of(given, what=f"Retry.{field}"))
        if isinstance(self.factor, bool) or not isinstance(self.factor, int | float):
            raise TypeError(f"Retry.factor must be a number, not {type(self.factor).__name__}")
        if not 1 <= self.factor <= STEEPEST:
            raise ValueError(f"Retry.factor is {self.factor}; it is from 1 to {STEEPEST}")
        for field in ("on", "give_up_on"):
            given = getattr(self, field)
            classes = (given,) if isinstance(given, type) else tuple(given)
            if not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
                raise TypeError(f"Retry.{field} takes classes of exceptions, like (OSError, TimeoutError)")
            object.__setattr__(self, field, classes)

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
            pause = min(_float(self.delay) * self.factor ** min(attempt - 1, 64), _float(self.max_delay))
            pause = pause * (0.5 + draw() / 2) if self.jitter else pause
        return None if self.max_time is not None and elapsed() + pause > _float(self.max_time) else pause

    def _worth_it(self, error: BaseException) -> bool:
        if isinstance(error, PermanentError | WorkflowMisuse) or not isinstance(error, Exception):
            return False
        return isinstance(error, (RetryableError, *self.on)) and not isinstance(error, self.give_up_on)


def _float(seconds: float | timedelta) -> float:
    """A duration as it is once it was checked: seconds."""
    return cast("float", seconds)


ONCE = Retry(max_attempts=1)
