from __future__ import annotations

import asyncio
import os
import stat

import asyncpg
import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from perdure.embedded.postgres_server import PostgresServer
from perdure.store.postgres import Pool
from tests.support import OwnServers, Servers, eventually, temporary_folder


async def test_each_server_answers(nc: Client, pool: Pool, redis: Redis):
    assert await nc.jetstream().account_info()
    assert await pool.fetchval("SELECT 1") == 1
    assert await redis.ping()


async def test_the_database_of_a_test_is_migrated_and_its_own(pool: Pool, servers: Servers):
    assert await pool.fetchval("SELECT current_database()") == servers.postgres.database


async def test_a_killed_nats_server_comes_back_on_its_port_with_its_streams(servers: Servers, nc: Client):
    js = nc.jetstream()
    await js.add_stream(name="KEPT", subjects=["kept.>"])
    before = servers.nats.pid
    await servers.nats.kill()
    assert not servers.nats.running
    await servers.nats.start()
    assert servers.nats.pid != before
    await eventually(lambda: nc.is_connected)
    assert (await js.stream_info("KEPT")).config.name == "KEPT"


async def test_a_killed_redis_keeps_what_was_written(servers: Servers, redis: Redis):
    await redis.set("kept", b"yes")
    await servers.redis.restart()
    assert await redis.get("kept") == b"yes"


async def test_a_killed_postgres_starts_again_at_once_with_its_rows(own_servers: OwnServers):
    connection = await asyncpg.connect(own_servers.postgres.url)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    await connection.execute("CHECKPOINT")
    await own_servers.postgres.kill()
    await own_servers.postgres.start()
    connection = await asyncpg.connect(own_servers.postgres.url)
    assert await connection.fetchval("SELECT n FROM kept") == 7
    await connection.close()


async def test_a_shared_postgres_may_not_be_killed(servers: Servers):
    with pytest.raises(AssertionError, match="own_postgres"):
        await servers.postgres.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts Postgres as another user")
async def test_root_may_keep_postgres_in_a_folder_that_its_user_could_not_reach():
    with temporary_folder("locked") as outer:
        outer.chmod(0o700)
        server = PostgresServer(outer / "home", fast=True)
        await server.start()
        try:
            connection = await asyncpg.connect(server.url)
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
        finally:
            await server.stop()
        assert not stat.S_IMODE(outer.stat().st_mode) & (stat.S_IRWXO & ~stat.S_IXOTH)


async def test_an_interrupted_first_start_of_postgres_leaves_nothing_that_hinders_the_next():
    with temporary_folder("half") as home:
        (home / "postgres.new").mkdir()
        (home / "postgres.new" / "PG_VERSION").write_text("16\n")
        server = PostgresServer(home, fast=True)
        await server.start()
        await server.stop()


async def test_a_postgres_too_busy_to_make_its_database_at_once_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    make, asked = PostgresServer._create_database, []

    async def busy(server: PostgresServer) -> None:
        asked.append(server)
        if len(asked) == 1:
            raise TimeoutError
        await make(server)

    monkeypatch.setattr(PostgresServer, "_create_database", busy)
    with temporary_folder("busy") as home:
        server = PostgresServer(home, fast=True)
        await server.start()
        await server.stop()
    assert len(asked) > 1


async def test_the_late_reply_of_a_cancelled_redis_command_never_reaches_the_next_caller(redis: Redis):
    await redis.set("mine", b"mine")
    for _ in range(20):
        waiting = asyncio.ensure_future(redis.blpop(["nothing-here"], timeout=0.02))
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await asyncio.gather(*(redis.get("mine") for _ in range(5))) == [b"mine"] * 5
