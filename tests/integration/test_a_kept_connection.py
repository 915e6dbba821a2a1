"""A connection that one user keeps between its uses is replaced when it is lost, also while nobody uses it."""

from __future__ import annotations

import pytest

from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Kept, Pool, create_pool
from tests.support import eventually


async def _pid(kept: Kept) -> int:
    async with kept.acquire() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def _end(pool: Pool, pid: int) -> None:
    assert await pool.fetchval("SELECT pg_terminate_backend($1)", pid)


async def _lose(kept: Kept, pool: Pool) -> None:
    async with kept.acquire() as connection:
        await _end(pool, await connection.fetchval("SELECT pg_backend_pid()"))
        await connection.fetchval("SELECT pg_sleep(30)")


async def test_it_stays_the_same_between_its_uses(pool):
    kept = Kept(pool)
    assert await _pid(kept) == await _pid(kept)
    await kept.release()


async def test_one_that_is_lost_while_nobody_uses_it_is_replaced_by_the_next_use(pool):
    kept = Kept(pool)
    first = await _pid(kept)
    connection = kept._connection
    assert connection is not None
    inner = connection._con
    await _end(pool, first)
    await eventually(inner.is_closed)
    assert await _pid(kept) != first
    await kept.release()


async def test_one_that_is_lost_in_use_goes_back_to_the_pool_and_the_next_use_takes_another(settings, pool):
    own = await create_pool(settings, "test", size=2)
    try:
        kept = Kept(own)
        await _pid(kept)
        assert own.get_idle_size() == own.get_size(), "a pool of two has none to spare"
        for _ in range(5):  # more often than the pool has places
            with pytest.raises(CONNECTION_ERRORS):
                await _lose(kept, pool)
            assert await _pid(kept)
        await kept.release()
    finally:
        await own.close()


async def test_its_plans_are_made_once_and_soon_forgotten_when_tables_grow(pool, monkeypatch):
    monkeypatch.setattr(Kept, "PLANNED_FOR", 5)
    kept = Kept(pool)

    async def way() -> str:
        async with kept.acquire() as connection:
            return "\n".join([row[0] for row in await connection.fetch("EXPLAIN EXECUTE find('{1}')")])

    async with kept.acquire() as connection:
        await connection.execute("CREATE TABLE grows (at integer PRIMARY KEY) WITH (autovacuum_enabled = false)")
        await connection.execute("INSERT INTO grows SELECT generate_series(1, 200); ANALYZE grows")
        await connection.execute("PREPARE find (integer[]) AS SELECT FROM grows WHERE at = ANY($1)")
    assert "Seq Scan" in await way()
    assert "$1" in await way(), "it is planned for any list, not for this one"
    async with kept.acquire() as connection:
        await connection.execute("INSERT INTO grows SELECT generate_series(201, 10000)")
    assert "Index" in await way()
    await kept.release()
    assert await pool.fetchval("SHOW plan_cache_mode") == "auto", "whoever has the connection next plans as usual"
