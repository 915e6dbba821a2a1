"""One-time tickets for event streams, for readers that can send no header (`EventSource` in a browser)."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import asdict
from typing import Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.edge.callers import Caller
from perdure.errors import Unauthorized, Unavailable
from perdure.store.redis import key_of

LIVES: Final = 60  # seconds
AT_A_TIME: Final = 16  # commands; past the connections of its pool Redis would count as away


class Tickets:
    """Kept in Redis, so that any gateway takes them; a Redis that forgets costs a new one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._few = asyncio.Semaphore(AT_A_TIME)

    async def give(self, caller: Caller) -> str:
        """A ticket that lets its holder read as `caller`, once. Raises `Unavailable`."""
        ticket = secrets.token_urlsafe(32)
        said = asdict(caller) | {"agents": None if caller.agents is None else sorted(caller.agents)}
        try:
            async with self._few:
                await self._redis.set(self._key(ticket), orjson.dumps(said), ex=LIVES)
        except (RedisError, OSError):
            raise Unavailable("no tickets can be given now, Redis is away; ask again") from None
        return ticket

    async def take(self, ticket: str) -> Caller:
        """Whose ticket it is; it is of no more use then. Raises `Unauthorized`, `Unavailable`."""
        try:
            async with self._few:
                said = await self._redis.getdel(self._key(ticket))
        except (RedisError, OSError):
            raise Unavailable("tickets cannot be checked now, Redis is away; ask again") from None
        if said is None:
            raise Unauthorized("this ticket is used, or older than a minute: get a new one (POST /tickets)")
        found = orjson.loads(said)
        return Caller(**{**found, "agents": None if found["agents"] is None else frozenset(found["agents"])})

    def _key(self, ticket: str) -> str:
        return key_of(self._redis, f"perdure:ticket:{hashlib.sha256(ticket.encode()).hexdigest()}")
