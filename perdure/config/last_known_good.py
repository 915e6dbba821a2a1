"""The last good configuration of an agent in Redis, for a start while no ConfigManager answers."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.config.snapshot import AgentConfig
from perdure.store.redis import key_of

PREFIX: Final = "perdure:config:lkg:"
DEADLINE: Final = 1.0  # seconds; a slow cache must not slow configuration down

log = structlog.get_logger()


class LastKnownGood:
    """The hash `perdure:config:lkg:<agent>` with `revision`, `values` (JSON), `hash` and `saved_at`.

    Only good rows are in it, and secrets only as references. Redis being away is logged and does no harm.
    """

    def __init__(self, redis: Redis, agent_name: str) -> None:
        self._redis = redis
        self._key = key_of(redis, PREFIX + agent_name)

    async def save(self, snapshot: AgentConfig) -> None:
        """Remember `snapshot`."""
        fields: dict[Any, Any] = {
            "revision": snapshot.revision,
            "values": orjson.dumps(dict(snapshot.values)),
            "hash": snapshot.hash,
            "saved_at": time.time(),
        }
        try:
            async with asyncio.timeout(DEADLINE):
                await self._redis.hset(self._key, mapping=fields)
        except (RedisError, OSError, TimeoutError) as error:
            log.info("the last known good was not saved", action="config.lkg_not_saved", error=str(error))

    async def load(self) -> tuple[dict[str, str], int] | None:
        """The rows and their revision, or None when there are none or Redis is away."""
        try:
            async with asyncio.timeout(DEADLINE):
                fields = await self._redis.hgetall(self._key)
            if not fields:
                return None
            values = orjson.loads(fields[b"values"])
            return {str(key): str(value) for key, value in values.items()}, int(fields[b"revision"])
        except (RedisError, OSError, TimeoutError) as error:
            log.info("the last known good was not read", action="config.lkg_not_read", error=str(error))
        except (ValueError, KeyError, AttributeError):
            log.warning("the last known good is damaged; passed over", action="config.lkg_damaged", key=self._key)
        return None
