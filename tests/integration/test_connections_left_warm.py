"""A connection is left for the next use, and nobody else goes without one for it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Warm, create_pool
from tests.support import eventually

PID = "SELECT pg_backend_pid()"


@pytest.fixture
async def own(settings):
    made = await create_pool(settings, "test", size=8)
    yield made
    made.terminate()


async def _pid(warm: Warm) -> int:
    async with warm.acquire() as connection:
        return int(await connection.fetchval(PID))


async def _together(warm: Warm, number: int) -> set[int]:
    """The backends of so many uses at a time."""
    there = asyncio.Barrier(number)

    async def use() -> int:
        async with warm.acquire() as connection:
            await there.wait()
            return int(await connection.fetchval(PID))

    return set(await asyncio.gather(*(use() for _ in range(number))))


async def test_the_next_use_has_the_same_connection(own):
    warm = Warm(own, 5)
    assert await _pid(warm) == await _pid(warm)
    assert own.get_size() - own.get_idle_size() == 1
    await warm.release()
    assert own.get_idle_size() == own.get_size()


async def test_of_many_uses_at_a_time_few_connections_stay(own):
    warm = Warm(own, 5)
    assert len(await _together(warm, 5)) == 5
    assert own.get_size() - own.get_idle_size() == Warm.SPARE
    assert len(await _together(warm, 5)) == 5


async def test_nothing_is_left_while_more_are_out_than_may_be(own):
    warm = Warm(own, 1)
    async with warm.acquire():
        await _pid(warm)
        assert own.get_size() - own.get_idle_size() == 1
    await warm.release()


async def test_a_small_pool_has_none_to_spare(settings):
    small = await create_pool(settings, "test", size=2)
    try:
        await _pid(Warm(small, 1))
        assert small.get_idle_size() == small.get_size()
    finally:
        await small.close()


async def test_one_that_is_lost_meanwhile_is_replaced(own, pool):
    warm = Warm(own, 5)
    first = await _pid(warm)
    inner = warm._left[0]._con
    assert await pool.fetchval("SELECT pg_terminate_backend($1)", first)
    await eventually(inner.is_closed)
    assert await _pid(warm) != first
    await warm.release()
    assert own.get_idle_size() == own.get_size()


@pytest.mark.parametrize("how", ["refused", "lost", "cancelled"])
async def test_one_whose_use_failed_goes_back_to_the_pool(own, pool, how):
    warm = Warm(own, 5)

    async def fail() -> None:
        async with warm.acquire() as connection:
            if how == "lost":
                await pool.execute("SELECT pg_terminate_backend($1)", await connection.fetchval(PID))
            await connection.fetchval("SELECT 1/0" if how == "refused" else "SELECT 'no one'::text FROM pg_sleep(30)")

    task = asyncio.create_task(fail())
    if how == "cancelled":
        await eventually(lambda: own.get_size() - own.get_idle_size() == 1)
        task.cancel()
    with pytest.raises((asyncpg.DivisionByZeroError, asyncio.CancelledError, *CONNECTION_ERRORS)):
        await task
    assert warm._left == []
    assert own.get_size() == own.get_idle_size()
    assert await _pid(warm)
    await warm.release()


async def test_what_comes_back_after_the_release_is_not_left(own):
    warm = Warm(own, 5)
    async with warm.acquire():
        await warm.release()
    assert own.get_idle_size() == own.get_size()
