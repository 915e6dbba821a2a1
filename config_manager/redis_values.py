"""What the mirror reads of Redis and writes there, each in one atomic step."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from redis.asyncio import Redis

from config_manager.redis_names import Batch, Name, RedisNames, read_batch

SCAN_COUNT: Final = 1000

# Replaces a value only while it is the one that was seen: what somebody writes meanwhile stays.
_REPLACE: Final = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'string' and kind ~= 'none' then return 2 end
local now = redis.call('GET', KEYS[1])
if (now and redis.sha1hex(now) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == 'put' then redis.call('SET', KEYS[1], ARGV[3]) else redis.call('DEL', KEYS[1]) end
return 1
"""

# A batch becomes its keys in one step, so that no crash leaves both, or half of it.
_UNPACK: Final = """
local now = redis.call('GET', KEYS[1])
if not now or redis.sha1hex(now) ~= ARGV[1] then return 0 end
local puts = tonumber(ARGV[2])
for at = 1, puts do redis.call('SET', KEYS[2 + at], ARGV[2 + at]) end
for at = 3 + puts, #KEYS do
    if redis.call('DEL', KEYS[at]) == 1 then redis.call('HINCRBY', KEYS[2], KEYS[at], 1) end
end
redis.call('DEL', KEYS[1])
return 1
"""

_RAISE: Final = """
if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
"""

# A deletion that was heard is crossed off, unless another one was heard since.
_CROSS_OFF: Final = """
for at = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then redis.call('HDEL', KEYS[1], ARGV[at]) end
end
"""


class Replaced(Enum):
    """What became of a replacement."""

    CHANGED_MEANWHILE = 0
    DONE = 1
    OTHER_TYPE = 2


@dataclass(frozen=True, slots=True)
class Found:
    """One moment of Redis: its mark, values (None: absent), and deletions that were heard, with their count."""

    mark: int
    values: dict[Name, bytes | None]
    deleted: dict[Name, bytes]


class RedisValues:
    """Configuration as it stands in Redis. Every call raises `redis.exceptions.RedisError` when Redis cannot."""

    def __init__(self, redis: Redis, names: RedisNames) -> None:
        self._redis: Any = redis
        self._names = names
        self._mark = names.own_key("mark")
        self._deleted = names.own_key("deleted")
        self._replace: Any = redis.register_script(_REPLACE)
        self._unpack: Any = redis.register_script(_UNPACK)
        self._raise: Any = redis.register_script(_RAISE)
        self._cross_off: Any = redis.register_script(_CROSS_OFF)

    async def keys(self) -> list[str]:
        """Every key that may be configuration. Keys that are not UTF-8 are passed over."""
        fixed = self._names.fixed
        if fixed is not None:
            return fixed
        scanned = [key async for key in self._redis.scan_iter(match=self._names.pattern, count=SCAN_COUNT)]
        return [text for key in scanned if (text := _text(key)) is not None]

    async def read(self, names: Collection[Name]) -> Found:
        """The values of some keys."""
        by_key = {key: name for name in names if (key := self._names.key_of(name)) is not None}
        if not by_key:
            return Found(int(await self._redis.get(self._mark) or 0), {}, {})
        async with self._redis.pipeline(transaction=True) as together:
            together.get(self._mark)
            together.mget(list(by_key))
            together.hmget(self._deleted, list(by_key))
            mark, values, deleted = await together.execute()
        heard = {name: count for name, count in zip(by_key.values(), deleted, strict=True) if count is not None}
        return Found(int(mark or 0), dict(zip(by_key.values(), values, strict=True)), heard)

    async def set_mark(self, mark: int) -> None:
        """Leave a number behind whatever was read: if it is there later, so is all that. It never goes down."""
        await self._raise(keys=[self._mark], args=[mark])

    async def replace(self, name: Name, seen: bytes | None, value: str | None) -> Replaced:
        """Put `value` (None: delete) in the place of `seen` (None: absent), if that still stands there."""
        arguments = [_sha1(seen)] + (["delete"] if value is None else ["put", value])
        return Replaced(int(await self._replace(keys=[self._names.key_of(name)], args=arguments)))

    async def unpack(self, batch: Batch) -> set[Name]:
        """Turn a batch into keys of their own; the names in it. Raises `ValueError` when it is no batch."""
        key = self._names.key_of_batch(batch)
        async with self._redis.pipeline(transaction=True) as together:
            together.type(key)
            together.get(key)
            kind, value = await together.execute(raise_on_error=False)
        if kind not in (b"string", b"none"):
            raise ValueError("a batch is a string, a JSON object as text, and this is another type of Redis")
        if isinstance(value, BaseException):
            raise value
        if value is None:
            return set()
        puts, deletes = read_batch(value)
        targets = [self._names.key_of(Name(batch.layer, each)) for each in (*puts, *deletes)]
        await self._unpack(keys=[key, self._deleted, *targets], args=[_sha1(value), len(puts), *puts.values()])
        return {Name(batch.layer, each) for each in (*puts, *deletes)}

    async def heard_deletion(self, key: str) -> None:
        """Remember that somebody deleted a key, until the table has followed."""
        await self._redis.hincrby(self._deleted, key, 1)

    async def cross_off(self, deleted: Mapping[Name, bytes]) -> None:
        """The table has followed these."""
        if deleted:
            pairs = [part for name, count in deleted.items() for part in (self._names.key_of(name), count)]
            await self._cross_off(keys=[self._deleted], args=pairs)

    async def forget_deletions(self) -> None:
        """What was heard before Redis lost its data says nothing any more."""
        await self._redis.delete(self._deleted)


def _sha1(value: bytes | None) -> str:
    return "" if value is None else hashlib.sha1(value, usedforsecurity=False).hexdigest()


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
