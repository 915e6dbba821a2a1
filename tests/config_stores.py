"""The two stores of configuration, each written in its plain way: SQL, or SET and DEL."""

from __future__ import annotations

from typing import Any

import orjson
from redis.asyncio import Redis

from perdure.store.postgres import Pool
from tests.config_support import PUT


class SqlStore:
    """`agent_configurations`, as psql writes it."""

    name = "postgres"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, layer: str, key: str, value: str) -> None:
        """Write a value."""
        await self._pool.execute(PUT, layer, key, value)

    async def delete(self, layer: str, key: str) -> None:
        """Take it away."""
        await self._pool.execute(
            "DELETE FROM agent_configurations WHERE agent_name = $1 AND config_key = $2", layer, key
        )

    async def batch(self, layer: str, values: dict[str, Any]) -> None:
        """Several keys that go live together; None takes one away."""
        async with self._pool.acquire() as connection, connection.transaction():
            for key, value in values.items():
                if value is None:
                    await connection.execute(
                        "DELETE FROM agent_configurations WHERE agent_name = $1 AND config_key = $2", layer, key
                    )
                else:
                    await connection.execute(PUT, layer, key, value)

    async def value(self, layer: str, key: str) -> str | None:
        """What stands there."""
        found: str | None = await self._pool.fetchval(
            "SELECT config_value FROM agent_configurations WHERE agent_name = $1 AND config_key = $2", layer, key
        )
        return found


class RedisStore:
    """`config:<agent>:<key>`, as redis-cli writes it."""

    name = "redis"

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis

    async def put(self, layer: str, key: str, value: str | bytes) -> None:
        """Write a value."""
        await self._redis.set(f"config:{layer}:{key}", value)

    async def delete(self, layer: str, key: str) -> None:
        """Take it away."""
        await self._redis.delete(f"config:{layer}:{key}")

    async def batch(self, layer: str, values: dict[str, Any]) -> None:
        """Several keys that go live together; None takes one away."""
        await self._redis.set(f"config:{layer}", orjson.dumps(values))

    async def value(self, layer: str, key: str) -> str | None:
        """What stands there."""
        found = await self._redis.get(f"config:{layer}:{key}")
        return None if found is None else found.decode()
