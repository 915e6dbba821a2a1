from __future__ import annotations

import pytest

from perdure.errors import RetryableError
from perdure.llm.breaker import Breaker
from perdure.llm.limiter import RateLimit, slots


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through():
    time = Time()
    breaker = Breaker(failures=3, pause=2, longest=5, clock=time)
    for _ in range(2):
        breaker.failed()
    breaker.check("x")
    breaker.succeeded()
    for _ in range(3):
        breaker.check("x")
        breaker.failed()
    assert breaker.is_open
    with pytest.raises(RetryableError, match="x failed 3 times") as told:
        breaker.check("x")
    assert told.value.retry_after == 2
    time.now += 2
    breaker.check("x")
    with pytest.raises(RetryableError):
        breaker.check("x")  # one probe at a time
    breaker.failed()
    with pytest.raises(RetryableError) as told:
        breaker.check("x")
    assert told.value.retry_after == 4
    time.now += 4
    breaker.check("x")
    breaker.gave_up()
    breaker.check("x")
    breaker.succeeded()
    breaker.check("x")
    assert not breaker.is_open


@pytest.mark.parametrize("per_minute", [0.5, 1, 7, 600, 601, 100_000])
def test_the_slots_of_a_window_are_those_of_a_minute(per_minute):
    most, window = slots(per_minute)
    assert most <= 600
    assert most / window == pytest.approx(per_minute / 60)


async def one():
    return 1


async def two():
    return 2


class TestRedis:
    async def test_no_window_has_more_slots_than_the_limit_over_all_replicas(self, redis):
        replicas = [RateLimit(redis, "bob", replicas=one) for _ in range(3)]
        waits = [await replicas[n % 3].reserve(5) for n in range(12)]
        assert waits[:5] == [0.0] * 5
        assert all(50 < wait <= 60 for wait in waits[5:10])
        assert all(110 < wait <= 120 for wait in waits[10:])

    async def test_limits_of_other_names_and_a_lowered_limit_are_respected(self, redis):
        limit, other = RateLimit(redis, "bob", replicas=one), RateLimit(redis, "eve", replicas=one)
        assert [await limit.reserve(4) for _ in range(4)] == [0.0] * 4
        assert await other.reserve(4) == 0.0
        assert await limit.reserve(2) > 50

    async def test_while_redis_is_down_each_process_takes_its_share(self, servers, redis):
        time = Time()
        limit = RateLimit(redis, "bob", replicas=two, clock=time)
        await servers.redis.kill()
        assert [await limit.reserve(4) for _ in range(2)] == [0.0, 0.0]
        assert await limit.reserve(4) == pytest.approx(60)
        time.now += 60
        assert await limit.reserve(4) >= 0.0
