"""Seals the audit log and the history of configuration, and removes acts that are older than they are kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import structlog

from perdure.settings import Settings
from perdure.store.audit import Chain, content_of, digest_of, hash_act, hash_change, read_key
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

_SQL = load_queries("audit.sql")
BLOCK: Final = 5000  # acts in a block, or revisions of configuration
PATIENCE: Final = timedelta(hours=1)  # within which a transaction with a lower id commits, or never
MOST_GAPS: Final = 10_000
EVERY: Final = 1.0  # seconds
PRUNE_EVERY: Final = 600.0

log = structlog.get_logger(__name__)


class Sealer:
    """Seals what is new, a block at a time."""

    def __init__(self, pool: Pool, audit_key: str | None, *, block: int = BLOCK) -> None:
        self._pool = pool
        self._key_id, self._key = read_key(audit_key)
        self._block = block

    async def seal(self, chain: Chain) -> int:
        """Seal at most one block of `chain`; how many rows it has. Nothing while another one seals."""
        async with self._pool.acquire() as connection, connection.transaction():
            if not await connection.fetchval(_SQL["seal_alone"], chain):
                return 0
            last = await connection.fetchrow(_SQL["last_seal"], chain)
            high, before, seq = (last["high"], last["digest"], last["seq"] + 1) if last else (0, b"", 1)
            now = datetime.now(UTC)
            gaps = {} if last is None else dict(zip(last["gaps"], last["gaps_since"], strict=True))
            gaps = {each: since for each, since in gaps.items() if now - since < PATIENCE}
            if chain == "acts":
                rows = await connection.fetch(_SQL["new_acts"], high, list(gaps), self._block)
            else:
                rows = await connection.fetch(_SQL["new_changes"], high, self._block)
            if not rows:
                return 0
            ids = [row["id"] for row in rows]
            if chain == "acts":
                there = set(ids)
                fresh = (each for each in range(high + 1, max(ids)) if each not in there)
                gaps = {each: since for each, since in gaps.items() if each not in there}
                for each in fresh:
                    if len(gaps) >= MOST_GAPS:
                        break
                    gaps[each] = now
            make = hash_act if chain == "acts" else hash_change
            seal: dict[str, Any] = {
                "first_at": min(row["at"] for row in rows),
                "last_at": max(row["at"] for row in rows),
                "high": max(high, *ids),
                "ids": ids,
                "gaps": list(gaps),
                "gaps_since": list(gaps.values()),
                "hashes": await asyncio.to_thread(lambda: b"".join(make(row) for row in rows)),
            }
            seal["content"] = content_of(ids, seal["hashes"])
            digest = digest_of(self._key, chain, seq, before, seal)
            await connection.execute(_SQL["seal"], chain, seq, *seal.values(), self._key_id, digest)
        return len(rows)

    async def empty(self, chain: Chain, most: int = 1000) -> int:
        """Let at most so many seals go of the hashes of rows that are all gone; how many."""
        return int(await self._pool.fetchval(_SQL["empty"], chain, most))

    async def prune(self, days: float, most: int = 1000) -> int:
        """Remove the acts of at most so many blocks whose newest is older than `days`; how many acts."""
        return int(await self._pool.fetchval(_SQL["prune"], days, most))


class Sealing:
    """The loop of a service. Any number of processes may do so: one at a time seals."""

    def __init__(self, pool: Pool, settings: Settings, chain: Chain) -> None:
        self._chain: Chain = chain
        self._sealer = Sealer(pool, settings.audit_key)
        self._days = settings.audit_days

    async def run(self) -> None:
        """Seal until cancelled."""
        loop = asyncio.get_running_loop()
        pruned = loop.time() - PRUNE_EVERY
        while True:
            await asyncio.sleep(EVERY)
            try:
                while await self._sealer.seal(self._chain) >= BLOCK:
                    pass
                if loop.time() - pruned >= PRUNE_EVERY:
                    pruned = loop.time()
                    if self._chain == "acts" and self._days:
                        await self._sealer.prune(self._days)
                    await self._sealer.empty(self._chain)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                log.warning("acts are not sealed; trying again", action="audit.retry", error=str(error)[:300])
