"""PERDURE_CONFIG_STORE=redis: hears what changes in Redis, reads again anyway, and has the mirror make both agree.

Keyspace events are lossy, so they only make it quick. Everything is read on each (re)connect, on taking the lead, and
every few seconds. Whoever broadcasts also mirrors; the others listen, note deletions, and help when nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from config_manager.database import told_as_api_errors
from config_manager.redis_mirror import SQL, LostDataError, Mirror
from config_manager.redis_names import Batch, Name, RedisNames
from config_manager.redis_values import RedisValues
from config_manager.table import Notice
from perdure.errors import ApiError, Unavailable
from perdure.observe.health import Finding
from perdure.store.postgres import Pool

POLL: Final = 5.0  # seconds between two looks at everything
POLL_DEAF: Final = 1.0  # the same where Redis tells no events
PATIENCE: Final = 2.0  # seconds that one who does not lead leaves a change to the one who does
TELLS: Final = "K$gxe"  # key names, for SET, for DEL and RENAME, for what expired and what was evicted
DELETIONS: Final = frozenset({"del", "rename_from", "move_from"})
MOST_HEARD: Final = 1000  # names; beyond, everything is looked at
TROUBLE: Final = (RedisError, OSError, TimeoutError, ApiError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = structlog.get_logger()


class RedisSource:
    """Two loops of a ConfigManager, `listen` and `run`, and what its own writes do before and after: `agreed`."""

    def __init__(
        self, redis: Redis, pool: Pool, names: RedisNames, *, leads: Callable[[], bool], interval: float = POLL
    ) -> None:
        self.patience = PATIENCE
        self.connected = asyncio.Event()  # there is a connection for events
        self.looks = 0
        self._redis: Any = redis
        self._pool = pool
        self._names = names
        self._values = RedisValues(redis, names)
        self.mirror = Mirror(pool, self._values)
        self._leads = leads
        self._interval = interval
        self._tells = False  # an event has come
        self._deaf = ""  # why Redis tells no events
        self._trouble = ""  # why the table does not follow
        self._unheard = ""  # why there is no connection for events
        self._badly_named: dict[str, str] = {}
        self._all = True
        self._heard: set[Name | Batch] = set()
        self._led = False
        self._wake = asyncio.Event()

    # -- hearing -----------------------------------------------------------------------------------------------------
    async def listen(self) -> None:
        """Hear of changes for ever. A connection that was lost and is back means: read everything."""
        wait = 0.05
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    database = self._redis.connection_pool.connection_kwargs.get("db") or 0
                    await pubsub.psubscribe(f"__keyspace@{database}__:{self._names.pattern}")
                    while True:
                        message = await pubsub.get_message(timeout=1.0)
                        if message is not None:
                            wait = 0.05
                            await self._told(message)
            except (RedisError, OSError, TimeoutError) as error:
                self.connected.clear()
                if _said(error) != self._unheard:  # once an outage, not once an attempt
                    self._unheard = _said(error)
                    log.warning(
                        "events of Redis are not heard: it is polled",
                        action="config.redis_unheard",
                        error=self._unheard,
                    )
            await asyncio.sleep(wait)
            wait = min(wait * 2, 1.0)

    def touched(self, notices: Iterable[Notice]) -> None:
        """The table has changed, or this one leads from now on."""
        self._hear(Name(notice.layer, key) for notice in notices for key in notice.keys)

    async def _told(self, message: dict[str, Any]) -> None:
        if message["type"] == "psubscribe":  # also after a reconnect that redis-py did by itself
            self._all = True
            self._tells, self._unheard = False, ""
            self.connected.set()
            self._wake.set()
            return
        if message["type"] != "pmessage":
            return
        self._tells, self._deaf = True, ""  # whatever CONFIG may say, or not be allowed to say
        event, key = _text(message["data"]), _text(message["channel"]).partition(":")[2]
        name = self._read(key)
        if name is None:
            return
        if event in DELETIONS and isinstance(name, Name):
            await self._values.heard_deletion(key)
        self._hear([name])

    def _hear(self, names: Iterable[Name | Batch]) -> None:
        self._heard.update(names)
        if len(self._heard) > MOST_HEARD:
            self._heard.clear()
            self._all = True
        self._wake.set()

    async def _switch_on(self) -> None:
        """See that Redis tells what happens to keys; where it may not be told to, polling goes on."""
        try:
            said = await self._redis.config_get("notify-keyspace-events")
            flags = next((_text(value) for value in said.values()), "")
            on = set(flags) | (set("g$xe") if "A" in flags else set())
            if not on >= set(TELLS):
                await self._redis.config_set("notify-keyspace-events", "".join(sorted(set(flags) | set(TELLS))))
        except ResponseError as error:
            if self._tells:
                return
            if not self._deaf:
                log.warning(
                    "Redis may not be told to tell its events: it is polled, and a DEL is not heard",
                    action="config.redis_deaf",
                    fix=f"set notify-keyspace-events to {TELLS} in its configuration",
                    error=str(error),
                )
            self._deaf = str(error)
        else:
            self._deaf = ""

    def _read(self, key: str) -> Name | Batch | None:
        try:
            return self._names.read(key)
        except ValueError as error:
            if self._badly_named.get(key) != str(error) and len(self._badly_named) < MOST_HEARD:
                log.warning("a key of Redis is passed over", action="config.redis_bad_name", key=key, why=str(error))
                self._badly_named[key] = str(error)
            return None

    # -- looking -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Look for ever: at what was heard of, and at everything now and then."""
        while True:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                self._all = True
            self._wake.clear()
            if not self._leads():
                self._led = False
                if not self._heard:
                    self._all = False
                    self.mirror.missing.clear()
                    continue
                await self._leave_it_to_the_leader()
            if self._leads() and not self._led:
                self._led = self._all = True
            await self._look_and_complain()

    def _pause(self) -> float:
        if self.mirror.missing:
            return min(self._interval, self.mirror.grace)
        return min(self._interval, POLL_DEAF) if self._deaf or not self.connected.is_set() else self._interval

    async def _leave_it_to_the_leader(self) -> None:
        """What was heard is looked at later all the same: whoever leads may hang."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                while not self._leads():
                    await self._wake.wait()
                    self._wake.clear()

    async def _look_and_complain(self) -> None:
        everything, self._all = self._all, False
        heard, self._heard = self._heard, set()
        self.looks += 1
        try:
            if everything:
                await self.look_at_all()
            else:
                await self.look(heard)
        except TROUBLE as error:
            self._all = True
            self._complain(error)
            await asyncio.sleep(min(self._interval, 0.25))
            self._wake.set()
        else:
            if self._trouble:
                log.info("configuration follows Redis again", action="config.redis_back")
            self._trouble = ""

    async def look(self, names: Collection[Name | Batch]) -> None:
        """Make some keys agree."""
        wanted = {name for name in names if isinstance(name, Name)}
        for batch in names:
            if isinstance(batch, Batch):
                wanted |= await self.mirror.unpack(batch)
        try:
            await self.mirror.look(wanted)
        except LostDataError:
            await self.look_at_all()

    async def look_at_all(self) -> None:
        """Make all keys agree: those of Redis, those of the table, and those that Redis is known to have had."""
        await self._switch_on()  # first: what is set later is heard
        known = {Name(row["agent_name"], row["config_key"]) for row in await self._pool.fetch(SQL["known_names"])}
        names = {name for name in known if self._names.key_of(name) is not None}
        keys = await self._values.keys()
        self._badly_named = {key: self._badly_named[key] for key in keys if key in self._badly_named}
        for read in map(self._read, keys):
            if isinstance(read, Batch):
                names |= await self.mirror.unpack(read)
            elif read is not None:
                names.add(read)
        await self.mirror.look_at_all(names)

    # -- for the ConfigManager ---------------------------------------------------------------------------------------
    @asynccontextmanager
    async def agreed(self, layers: Collection[str], keys: Collection[str] = ()) -> AsyncIterator[None]:
        """Around a write to the last of some layers: what stands in Redis first counts, and afterwards Redis follows.

        Raises `Unavailable` when Redis cannot be asked: then nothing is written.
        """
        with told_as_api_errors():
            rows = await self._pool.fetch(SQL["known_names_of"], list(layers))
        names = {Name(row["agent_name"], row["config_key"]) for row in rows}
        names |= {Name(list(layers)[-1], key) for key in keys}
        try:
            with told_as_api_errors():
                await self.look({name for name in names if self._names.key_of(name) is not None})
        except (RedisError, OSError, TimeoutError) as error:
            self._complain(error)
            raise Unavailable(
                f"Redis is the source of configuration and cannot be used right now: {_said(error)}. Nothing was stored"
            ) from error
        yield
        try:
            await self.look({name for name in names if self._names.key_of(name) is not None})
        except TROUBLE as error:
            self._all = True
            self._wake.set()
            self._complain(error)

    async def check(self) -> Finding:
        """For health: whether Redis answers as the source, and what was not taken."""
        if self._trouble:
            return "warning", f"configuration does not follow Redis: {self._trouble}"
        refused = [f"{where}: {why}" for where, why in {**self._badly_named, **self.mirror.refused}.items()]
        if refused:
            return "warning", f"{len(refused)} value(s) in Redis not taken: {'; '.join(refused[:10])}"
        if self._deaf or self._unheard:
            return "warning", f"events of Redis are not heard, so it is polled: {self._deaf or self._unheard}"
        return "ok", "mirroring" if self._leads() else "another one mirrors"

    def _complain(self, error: BaseException) -> None:
        said = _said(error)
        if said != self._trouble:  # once an outage, not once an attempt
            log.warning("configuration does not follow Redis", action="config.redis_unavailable", error=said)
        self._trouble = said


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
