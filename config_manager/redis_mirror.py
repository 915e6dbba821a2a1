"""Redis as the source: each key is compared with its row, and whoever changed it last since both agreed wins.

For each key `config_redis` has the hash of what Redis had when both agreed (`seen`) and of what is on its way there
(`sent`). A value of Redis that is neither is news, and goes into the table by an ordinary transaction: its revision,
history, hold and broadcast are those of any other write. Where Redis has no news and the table differs, Redis is
written. When both have changed, the value of Redis wins; the other one stands in the history. A key that is gone
without a deletion that somebody heard is written back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Final

import asyncpg
import structlog

from config_manager import writes
from config_manager.redis_names import Batch, Name
from config_manager.redis_values import Found, RedisValues, Replaced
from perdure.store.postgres import Connection, Pool
from perdure.store.queries import load_queries

SQL: Final = load_queries("config_redis.sql")
CHANGED_BY: Final = "redis"
ABSENT: Final = b""  # the hash of no value
AT_A_TIME: Final = 250  # keys of one transaction
ROUNDS: Final = 5  # a key settles in three, unless others write all the time
GRACE: Final = 2.0  # seconds in which the word of a deletion may still be on its way
MOST_REFUSED: Final = 200  # remembered
OTHER_TYPE: Final = "the key is no string in Redis: DEL it, then SET a text"

log = structlog.get_logger()


class LostDataError(Exception):
    """Redis has a lower mark than was left there: every key has to be looked at before the mark is set again."""


class Action(Enum):
    """What is to be done about one key."""

    NOTHING = "nothing"
    AGREE = "agree"  # both stand at the same: remember that
    TAKE = "take"  # Redis has news
    DROP = "drop"  # deleted in Redis
    PUSH = "push"  # the table has news
    RESTORE = "restore"  # Redis has lost the value


def decide(found: bytes, stands: bytes, seen: bytes, sent: bytes | None, *, deleted: bool, old: bool) -> Action:
    """By the hashes of what Redis has, of what the table has, and of what is known.

    `deleted`: somebody was heard to delete the key. `old`: Redis has lost data, and the table had its value before.
    """
    if found == stands:
        return Action.NOTHING if seen == found and sent is None else Action.AGREE
    if found in (seen, sent):
        return Action.PUSH
    if found != ABSENT:
        return Action.RESTORE if old else Action.TAKE
    if stands not in (seen, sent):  # whoever deleted it had not seen this value
        return Action.PUSH
    return Action.DROP if deleted else Action.RESTORE


@dataclass(slots=True)
class Line:
    """One key: what Redis has, what the table has, and what is known."""

    name: Name
    found: bytes | None
    stands: str | None
    seen: bytes
    sent: bytes | None
    deleted: bool
    old: bool = False

    @property
    def action(self) -> Action:
        """What is to be done."""
        found, stands = hash_of(self.found), hash_of(self.stands)
        return decide(found, stands, self.seen, self.sent, deleted=self.deleted, old=self.old)


@dataclass(slots=True)
class Step:
    """What one transaction finds out, for after its commit."""

    known: dict[Name, tuple[bytes, bytes | None]] = field(default_factory=dict)
    taken: set[Name] = field(default_factory=set)
    refused: dict[Name, str] = field(default_factory=dict)
    heard: dict[Name, bytes] = field(default_factory=dict)


class Mirror:
    """Makes Redis and the table agree. Anyone may look at any time: a lock makes it one at a time."""

    def __init__(self, pool: Pool, values: RedisValues) -> None:
        self._pool = pool
        self._values = values
        self.refused: dict[str, str] = {}  # by key or layer: why what stood there was not taken
        self.wrote = 0  # transactions that changed something
        self.grace = GRACE
        self.missing: dict[Name, float] = {}  # keys that are gone, and since when: perhaps the word is on its way

    async def look(self, names: Collection[Name]) -> None:
        """Make some keys agree. Raises `LostDataError` when all have to be looked at: `look_at_all`.

        Raises `Unavailable` when Postgres cannot, `RedisError` when Redis cannot.
        """
        for some in _portions(names):
            await self._agree(some, whole=False)

    async def look_at_all(self, names: Collection[Name]) -> None:
        """Make all keys agree, also when Redis has lost data: then what is absent or older is written back."""
        mark = await self._pool.fetchval(SQL["mark"])
        lost = (await self._values.read(())).mark < mark
        if lost:
            log.warning("Redis has lost data; writing back what is known", action="config.redis_lost", keys=len(names))
        for some in _portions(names):
            await self._agree(some, whole=True)
        if lost:
            await self._values.forget_deletions()
            await self._values.set_mark(mark)

    async def unpack(self, batch: Batch) -> set[Name]:
        """The keys that a batch has become; one that is none is left where it is, and said."""
        try:
            names = await self._values.unpack(batch)
        except ValueError as error:
            self._refuse(batch.layer, str(error))
            return set()
        self.refused.pop(batch.layer, None)
        return names

    async def _agree(self, names: Collection[Name], *, whole: bool) -> None:
        for _ in range(ROUNDS):
            found = await self._values.read(names)
            lines = await self._lines(self._pool, found)
            for line in lines:
                if line.action is Action.NOTHING:
                    self.missing.pop(line.name, None)
            if not found.deleted and all(line.action is Action.NOTHING for line in lines):
                return
            step = Step()

            async def work(connection: Connection) -> None:
                nonlocal step
                step = Step()
                await self._work(connection, names, step, whole=whole)

            await writes.commit(self._pool, work, changed_by=CHANGED_BY)
            self.wrote += bool(step.known)
            await self._values.cross_off(step.heard)
            self._remember(step)
            if not step.known:
                return

    async def _work(self, connection: Connection, names: Collection[Name], step: Step, *, whole: bool) -> None:
        mark = await connection.fetchval(SQL["lock_mark"])
        found = await self._values.read(names)
        lost = found.mark < mark
        if lost and not whole:
            raise LostDataError
        step.heard = found.deleted
        lines = await self._lines(connection, found)
        if lost:
            await self._doubt(connection, lines)
        todo: dict[Action, list[Line]] = {action: [] for action in Action}
        for line in lines:
            todo[self._action(line, lost=lost)].append(line)
        for line in todo[Action.AGREE]:
            step.known[line.name] = (hash_of(line.found), None)
        await self._drop(connection, todo[Action.DROP], step)
        await self._take(connection, todo[Action.TAKE], step)
        for line in (*todo[Action.PUSH], *todo[Action.RESTORE]):
            await self._push(line, step)
        await self._know(connection, step.known)
        if step.known and not lost:
            # After what was read, before the commit: a crash in between leaves Redis ahead, which does no harm.
            await self._values.set_mark(max(mark, found.mark) + 1)
            await connection.execute(SQL["move_mark"], max(mark, found.mark) + 1)

    def _action(self, line: Line, *, lost: bool) -> Action:
        """What is to be done now: a key that is gone is given time, as the word of its deletion may be on its way."""
        action = line.action
        if action is not Action.RESTORE or line.found is not None or lost:
            self.missing.pop(line.name, None)
            return action
        since = self.missing.setdefault(line.name, time.monotonic())
        return action if time.monotonic() - since >= self.grace else Action.NOTHING

    async def _lines(self, source: Connection | Pool, found: Found) -> list[Line]:
        names = list(found.values)
        rows = await source.fetch(SQL["standing"], [name.layer for name in names], [name.key for name in names])
        lines = []
        for row in rows:
            name = Name(row["agent_name"], row["config_key"])
            seen = ABSENT if row["seen"] is None else row["seen"]
            deleted = name in found.deleted
            lines.append(Line(name, found.values[name], row["config_value"], seen, row["sent"], deleted))
        return lines

    async def _doubt(self, connection: Connection, lines: Iterable[Line]) -> None:
        """After a loss: values that the table had before are old ones, and deletions were heard of another Redis."""
        texts = {}
        for line in lines:
            line.deleted = False
            if line.found is not None and (text := _text(line.found)) is not None:
                texts[line.name] = text
        columns = [name.layer for name in texts], [name.key for name in texts], list(texts.values())
        rows = await connection.fetch(SQL["had_before"], *columns)
        past = {Name(row["agent_name"], row["config_key"]) for row in rows}
        for line in lines:
            line.old = line.name in past

    async def _take(self, connection: Connection, lines: Collection[Line], step: Step) -> None:
        """Put what Redis has into the table; what cannot stand there is replaced in Redis by what does."""
        good: dict[Name, str] = {}
        for line in lines:
            text = _text(line.found or b"")
            if text is None:
                step.refused[line.name] = "the value must be UTF-8 text without NUL"
            else:
                good[line.name] = text
        refused = await _put_all(connection, good)
        step.refused |= refused
        for line in lines:
            if line.name not in step.refused:
                step.known[line.name] = (hash_of(line.found), None)
                step.taken.add(line.name)
                continue
            replaced = await self._values.replace(line.name, line.found, line.stands)
            if replaced is Replaced.DONE:
                step.known[line.name] = (line.seen, hash_of(line.stands))

    async def _push(self, line: Line, step: Step) -> None:
        stands = hash_of(line.stands)
        if line.sent != stands:  # first it is said what will be written: then it is not news when it is found
            step.known[line.name] = (hash_of(line.found), stands)
            return
        replaced = await self._values.replace(line.name, line.found, line.stands)
        if replaced is Replaced.DONE:
            step.known[line.name] = (stands, None)
        elif replaced is Replaced.OTHER_TYPE:
            step.refused[line.name] = OTHER_TYPE

    async def _drop(self, connection: Connection, lines: Iterable[Line], step: Step) -> None:
        for layer, keys in _by_layer(line.name for line in lines).items():
            await writes.write(connection, layer, {}, keys)
            for key in keys:
                step.known[Name(layer, key)] = (ABSENT, None)
                step.taken.add(Name(layer, key))

    async def _know(self, connection: Connection, known: Mapping[Name, tuple[bytes, bytes | None]]) -> None:
        kept = {name: both for name, both in known.items() if both != (ABSENT, None)}
        gone = known.keys() - kept.keys()
        if kept:
            seen, sent = [both[0] for both in kept.values()], [both[1] for both in kept.values()]
            await connection.execute(
                SQL["know"], [name.layer for name in kept], [name.key for name in kept], seen, sent
            )
        if gone:
            await connection.execute(SQL["forget"], [name.layer for name in gone], [name.key for name in gone])

    def _remember(self, step: Step) -> None:
        """What was refused is said until something good stands there."""
        for name in step.known:
            where = f"{name.layer}:{name.key}"
            if name in step.taken or self.refused.get(where) == OTHER_TYPE:
                self.refused.pop(where, None)
        for name, why in step.refused.items():
            self._refuse(f"{name.layer}:{name.key}", why)

    def _refuse(self, where: str, why: str) -> None:
        if self.refused.get(where) != why:
            log.warning("what stands in Redis was not taken", action="config.redis_refused", key=where, why=why)
        self.refused.pop(where, None)
        self.refused[where] = why
        while len(self.refused) > MOST_REFUSED:
            del self.refused[next(iter(self.refused))]


async def _put_all(connection: Connection, values: Mapping[Name, str]) -> dict[Name, str]:
    """Write all in one go, or, when the table refuses something, one by one; what was refused, and why."""
    try:
        async with connection.transaction():
            await _put(connection, values)
    except (asyncpg.CheckViolationError, asyncpg.ProgramLimitExceededError) as error:
        if len(values) == 1:
            return {next(iter(values)): f"{error}. {getattr(error, 'hint', None) or ''}".strip()}
    else:
        return {}
    refused: dict[Name, str] = {}
    for name, text in values.items():
        refused |= await _put_all(connection, {name: text})
    return refused


async def _put(connection: Connection, values: Mapping[Name, str]) -> None:
    for layer, keys in _by_layer(values).items():
        await writes.write(connection, layer, {key: (values[Name(layer, key)], True) for key in keys}, ())


def _by_layer(names: Iterable[Name]) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name in sorted(names):
        layers.setdefault(name.layer, []).append(name.key)
    return layers


def _portions(names: Collection[Name]) -> Iterable[list[Name]]:
    left = iter(sorted(names))
    while some := list(islice(left, AT_A_TIME)):
        yield some


def hash_of(value: bytes | str | None) -> bytes:
    """SHA-256; of no value, nothing."""
    if value is None:
        return ABSENT
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text
