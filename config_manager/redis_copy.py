"""A copy of the table in Redis, for a ConfigManager that starts while Postgres is down. What it serves is `stale`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config_manager.table import ConfigTable, Hold
from perdure.store.redis import key_of

KEY: Final = "perdure:config:table"  # not under `config:`, where people may write
INTERVAL: Final = 1.0  # seconds between two copies, at least
DEADLINE: Final = 5.0

log = structlog.get_logger()


class RedisCopy:
    """Written at most once a second, by whoever broadcasts. Values are as in the table: secrets as references."""

    def __init__(self, redis: Redis, table: ConfigTable) -> None:
        self._redis = redis
        self._table = table
        self._saved: bytes | None = None
        self._key = key_of(redis, KEY)

    async def save(self) -> None:
        """Write the table if it differs from what was written last. Redis being away does no harm."""
        holds = [[agent, layer, key, asdict(hold)] for (agent, layer, key), hold in self._table.all_holds().items()]
        body = {
            "revision": self._table.revision,
            "rows": self._table.rows(),
            "heads": self._table.all_heads(),
            "holds": holds,
        }
        data = orjson.dumps(body)
        if data == self._saved:
            return
        try:
            async with asyncio.timeout(DEADLINE):
                await self._redis.set(self._key, data)
        except (RedisError, OSError, TimeoutError) as error:
            log.info("the copy in Redis was not written", action="config.copy_failed", error=str(error))
        else:
            self._saved = data

    async def load(self) -> bool:
        """Fill the table from the copy; False when there is none, or none that can be read."""
        try:
            async with asyncio.timeout(DEADLINE):
                data = await self._redis.get(self._key)
            if data is None:
                return False
            body = orjson.loads(data)
            rows = [
                {"agent_name": layer, "config_key": key, "config_value": text, "is_active": True}
                for layer, key, text in body["rows"]
            ]
            heads = [{"agent_name": layer, "revision": revision} for layer, revision in body["heads"].items()]
            holds = {(agent, layer, key): Hold(**hold) for agent, layer, key, hold in body["holds"]}
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("the copy in Redis cannot be read", action="config.copy_unreadable", error=str(error))
            return False
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("the copy in Redis is damaged; passed over", action="config.copy_damaged", key=self._key)
            return False
        self._table.load(body["revision"], rows, heads)
        self._table.hold(holds)
        return True
