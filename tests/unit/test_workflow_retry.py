from __future__ import annotations

from datetime import timedelta

import pytest

from perdure.engine.retry import Retry
from perdure.errors import PermanentError, RetryableError, WorkflowMisuse


def full(_: object = None) -> float:
    return 1.0


def test_pauses_grow_to_a_ceiling_and_the_first_try_counts():
    policy = Retry(max_attempts=5, delay=1.0, factor=3.0, max_delay=10.0, jitter=False)
    assert [policy.pause(attempt, OSError()) for attempt in range(1, 7)] == [1.0, 3.0, 9.0, 10.0, None, None]


def test_jitter_takes_at_most_half_of_a_pause():
    policy = Retry(delay=8.0)
    assert policy.pause(1, OSError(), draw=lambda: 0.0) == 4.0
    assert policy.pause(1, OSError(), draw=lambda: 1.0) == 8.0


@pytest.mark.parametrize("error", [PermanentError("no"), WorkflowMisuse("no"), SystemExit(1), KeyboardInterrupt()])
def test_what_trying_again_cannot_help_is_not_tried_again(error):
    assert Retry(max_attempts=10).pause(1, error) is None


def test_an_error_that_knows_when_is_believed():
    assert Retry(delay=60.0).pause(1, RetryableError("busy", retry_after=0.5)) == 0.5
    assert Retry(max_attempts=1).pause(1, RetryableError("busy", retry_after=0.5)) is None


def test_a_policy_of_very_many_attempts_does_not_overflow():
    assert Retry(max_attempts=10**6, delay=1.0, factor=10.0, jitter=False).pause(10**5, OSError()) == 60.0


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"delay": -1.0}, {"factor": 0.5}, {"max_delay": -1.0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="Retry"):
        Retry(**wrong)


def test_a_budget_ends_the_tries_before_their_number_does():
    policy = Retry(max_attempts=100, delay=1.0, factor=1.0, jitter=False, max_time=10)
    assert policy.pause(1, OSError(), elapsed=lambda: 9.0) == 1.0
    assert policy.pause(1, OSError(), elapsed=lambda: 9.1) is None
    assert policy.pause(1, RetryableError("busy", retry_after=60), elapsed=lambda: 0.0) is None


def test_errors_are_chosen_by_class():
    policy = Retry(on=(OSError,), give_up_on=(FileNotFoundError,))
    assert policy.pause(1, ConnectionResetError()) is not None
    assert policy.pause(1, RetryableError("busy")) is not None
    assert policy.pause(1, FileNotFoundError()) is None
    assert policy.pause(1, ValueError()) is None
    assert policy.pause(1, PermanentError("no")) is None
    assert Retry(on=OSError).pause(1, OSError()) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"on": ("OSError",)}, {"give_up_on": (1,)}])
def test_what_is_no_class_of_errors_is_refused_by_its_field(wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Retry(**wrong)


def test_a_budget_below_zero_is_refused():
    with pytest.raises(ValueError, match="max_time"):
        Retry(max_time=-1)


def test_durations_may_be_timedeltas():
    policy = Retry(delay=timedelta(seconds=2), max_delay=timedelta(seconds=3), jitter=False, max_attempts=9)
    assert [policy.pause(attempt, OSError()) for attempt in (1, 2)] == [2.0, 3.0]
    assert policy.pause(1, RetryableError("busy", retry_after=timedelta(minutes=1))) == 60.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("delay", "1"), ("delay", float("nan")), ("max_delay", float("inf")), ("max_attempts", "3"), ("factor", None),
     ("factor", float("inf")), ("max_time", -1)],
)  # fmt: skip
def test_a_policy_names_the_field_that_is_wrong(field, value):
    with pytest.raises((TypeError, ValueError), match=rf"Retry\.{field}"):
        Retry(**{field: value})


@pytest.mark.parametrize("value", ["3", float("nan"), float("inf"), 1e12, True])
def test_a_retryable_error_takes_no_pause_that_is_none(value):
    with pytest.raises((TypeError, ValueError), match="retry_after must be"):
        RetryableError("busy", retry_after=value)
