"""A rate limit that all replicas share: each call reserves a slot in Redis and waits for it.

In no window of a minute are more slots given than the limit says. A wiped Redis forgets at most one window; while Redis
is down each process gives out its own share.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.store.redis import key_of

log = structlog.get_logger()

_MOST_SLOTS: Final = 600
# KEYS[1] the slots; ARGV: how many, their window in microseconds. Gives the microseconds to wait.
_RESERVE: Final = """
local most, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local count = redis.call('LLEN', KEYS[1])
local slot = now
if count > 0 then
  slot = math.max(slot, tonumber(redis.call('LINDEX', KEYS[1], -1)))
end
if count >= most then
  slot = math.max(slot, tonumber(redis.call('LINDEX', KEYS[1], -most)) + window)
end
redis.call('RPUSH', KEYS[1], string.format('%.0f', slot))
redis.call('LTRIM', KEYS[1], -most, -1)
redis.call('PEXPIRE', KEYS[1], math.ceil((slot - now + window) / 1000) + 1000)
return string.format('%.0f', slot - now)
"""


def slots(per_minute: float) -> tuple[int, float]:
    """`(how many, in how many seconds)`: a minute's slots, or a part of a minute when they are many."""
    most = max(1, min(int(per_minute), _MOST_SLOTS))
    return most, 60.0 * most / per_minute


class RateLimit:
    """The shared limit `name`. `replicas` says how many processes there are, for the time without Redis."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        replicas: Callable[[], Awaitable[int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._key = key_of(redis, f"perdure:rate:{name}")
        self._replicas = replicas
        self._clock = clock
        self._own: deque[float] = deque()
        self._script: Any = redis.register_script(_RESERVE)

    async def reserve(self, per_minute: float) -> float:
        """Take the next free slot; the seconds until it begins. A slot that is taken is spent."""
        most, window = slots(per_minute)
        try:
            waited = await self._script(keys=[self._key], args=[most, int(window * 1_000_000)])
        except (RedisError, OSError) as error:
            log.warning(
                "the rate limit is this process's share alone while Redis is away",
                action="llm.rate_limit_alone",
                error=type(error).__name__,
            )
            return await self._alone(per_minute)
        return float(waited) / 1_000_000

    async def _alone(self, per_minute: float) -> float:
        most, window = slots(per_minute / max(1, await self._replicas()))
        now = self._clock()
        while len(self._own) > most:
            self._own.popleft()
        slot = max(now, self._own[-1] if self._own else now)
        if len(self._own) >= most:
            slot = max(slot, self._own.popleft() + window)
        self._own.append(slot)
        return slot - now
