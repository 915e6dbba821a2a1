"""Requests a minute of one key, over all gateways: counted in Redis, and by each process alone while that is away."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.errors import RateLimited
from perdure.store.redis import key_of

log = structlog.get_logger(__name__)

BURST: Final = 0.1  # of a minute's requests may come at once, and at least ten
REMEMBERED: Final = 10_000
AT_A_TIME: Final = 32  # commands; past the connections of its pool Redis would count as away
# KEYS[1] when the next request is due, in microseconds; ARGV: the time between two, how far they may run ahead.
# Gives how long to wait: 0 when the request may go. A refused request takes no place.
_TAKE: Final = """
local gap, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
if due - now > ahead then
  return string.format('%.0f', due - now - ahead)
end
redis.call('SET', KEYS[1], string.format('%.0f', due + gap), 'PX', math.ceil((due + gap - now) / 1000) + 1000)
return '0'
"""


class Limits:
    """The limits of all keys."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._script: Any = redis.register_script(_TAKE)
        self._few = asyncio.Semaphore(AT_A_TIME)
        self._alone: OrderedDict[str, float] = OrderedDict()

    async def take(self, who: str, per_minute: int) -> None:
        """Count one request. Raises `RateLimited` saying when the next one may come."""
        gap = 60.0 / per_minute
        ahead = gap * (max(10.0, per_minute * BURST) - 1)
        try:
            key = key_of(self._redis, f"perdure:http-rate:{who}")
            async with self._few:
                waited = await self._script(keys=[key], args=[int(gap * 1e6), int(ahead * 1e6)])
            wait = float(waited) / 1e6
        except (RedisError, OSError) as error:
            log.warning("each gateway counts alone", action="limits.alone", error=type(error).__name__)
            wait = self._take_alone(who, gap, ahead)
        if wait > 0:
            raise RateLimited(f"{per_minute} requests a minute are the limit of this key", retry_after=wait)

    def _take_alone(self, who: str, gap: float, ahead: float) -> float:
        now = time.monotonic()
        due = max(self._alone.pop(who, now), now)
        late = due - now - ahead
        self._alone[who] = due if late > 0 else due + gap
        if len(self._alone) > REMEMBERED:
            self._alone.popitem(last=False)
        return max(late, 0.0)
