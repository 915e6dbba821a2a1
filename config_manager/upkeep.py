"""What the broadcaster does from time to time: history is pruned, and plain values of declared secrets are removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import asyncpg
import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config_manager import writes
from config_manager.database import GONE, told_as_api_errors
from config_manager.database import SQL as CONFIG
from config_manager.table import ConfigTable
from perdure.config.last_known_good import PREFIX
from perdure.config.secrets import is_reference
from perdure.errors import Unavailable
from perdure.settings import Settings
from perdure.store.postgres import Connection, Pool
from perdure.store.queries import load_queries
from perdure.store.redis import key_of
from perdure.subjects import GLOBAL_LAYER

SQL: Final = load_queries("config_upkeep.sql")
INTERVAL: Final = 10.0  # seconds between two looks
BATCH: Final = 1000  # rows of history looked at in one transaction
BATCHES: Final = 50  # in one look
REMOVED_BY: Final = "perdure: declared secret"  # in history, for a plain value that was there before

log = structlog.get_logger()


class Upkeep:
    """Bounds history, and redacts what became a secret; each in small transactions, again after a kill."""

    def __init__(self, settings: Settings, pool: Pool, redis: Redis, table: ConfigTable) -> None:
        self._settings = settings
        self._pool = pool
        self._redis = redis
        self._table = table
        self._look = asyncio.Event()

    async def look(self) -> None:
        """Do what there is to do. Raises `Unavailable` when Postgres is away."""
        await self.redact()
        await self._finish()
        for _ in range(BATCHES):
            if not await self.prune():
                return

    async def prune(self) -> bool:
        """Prune one batch of history; False when nothing is old enough.

        The newest row of each key stays, and so does a good value that is held: a rollback to any revision from
        `pruned_to` on finds what it needs.
        """
        days, most = self._settings.config_history_days, self._settings.config_history_revisions
        kept = [(layer, key, hold.value_revision) for (_, layer, key), hold in self._table.all_holds().items()]
        layers, keys, revisions = ([*column] for column in zip(*kept, strict=True)) if kept else ([], [], [])
        with told_as_api_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                floor = await connection.fetchval(SQL["prune_floor"], days, most, BATCH)
                if floor is None:
                    return False
                if await connection.fetchval(SQL["raise_floor"], floor) is None:
                    return True  # another ConfigManager was quicker
                done = await connection.execute(SQL["prune"], floor, layers, keys, revisions)
        log.info("pruned history", action="config.pruned", up_to=floor, rows=int(done.rpartition(" ")[2]))
        return True

    async def redact(self) -> list[str]:
        """Remove plain values of keys that were declared secret since they were written; say which rows went.

        The row goes, as a revision that says why; history is masked; the key leaves kept snapshots and rollouts. What
        agents knew last, in Redis, is next (`run`), and only then the declaration counts as done.
        """
        removed: list[str] = []
        with told_as_api_errors():
            undone = await self._pool.fetch(SQL["undone_secrets"])
            if undone:  # a commit that checked its rows before the declaration ends first; later ones see it
                await self._pool.fetchval(CONFIG["lock_counter"])
                self._look.set()
            for agent, key in undone:
                removed += [f"{layer}.{key}" for layer in await self._delete_plain(agent, key)]
                async with self._pool.acquire() as connection, connection.transaction():
                    for block in ("mask_history", "strip_snapshots", "strip_rollouts"):
                        await connection.execute(SQL[block], agent, key)
        if removed:
            log.warning(
                "plain values of keys that are secret now were removed: write references, and renew those secrets",
                action="config.secret_removed",
                rows=removed,
            )
        return removed

    async def _delete_plain(self, agent: str, key: str) -> list[str]:
        gone: set[str] = set()

        async def work(connection: Connection) -> None:
            gone.update(layer for (layer,) in await connection.fetch(SQL["delete_plain"], agent, key))

        await writes.commit(self._pool, work, changed_by=REMOVED_BY)
        return sorted(gone)

    async def _finish(self) -> None:
        """Redis, and then the declarations are done."""
        with told_as_api_errors():
            for agent, key in await self._pool.fetch(SQL["undone_secrets"]):
                await self._redact_redis(agent, key)
                await self._pool.execute(SQL["secret_done"], agent, key)

    async def _redact_redis(self, agent: str, key: str) -> None:
        """Take the key out of what agents knew last. An agent that runs writes its own anew."""
        known = key_of(self._redis, PREFIX)
        try:
            if agent == GLOBAL_LAYER:
                names = [name async for name in self._redis.scan_iter(match=f"{known}*", count=1000)]
            else:
                names = [f"{known}{agent}".encode()]
            for name in names:
                values = orjson.loads(await self._redis.hget(name, "values") or b"{}")
                text = values.get(key)
                if text and not is_reference(text):
                    del values[key]
                    await self._redis.hset(name, "values", orjson.dumps(values))
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the last known good configurations cannot be read: {error}") from error

    async def run(self, leading: Callable[[], bool]) -> None:
        """Look now and then while `leading()` says that this one broadcasts, for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._look.wait()
            asked = self._look.is_set()
            self._look.clear()
            try:
                if asked or leading():
                    await self.look()
            except (*GONE, asyncpg.PostgresError, Unavailable) as error:
                log.info("upkeep waits", action="config.upkeep_waits", error=str(error) or type(error).__name__)
