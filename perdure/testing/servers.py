"""The servers that tests of authors run against: real ones, from the wheels, one set a test session."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg

from perdure.embedded.nats_server import NatsServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.redis_server import RedisServer
from perdure.settings import Settings
from perdure.store.migrate import migrate

TEMPLATE = "perdure_template"


@dataclass(slots=True)
class TestServers:
    """NATS, Postgres and Redis; `settings()` names them, each time with a migrated database of its own."""

    __test__ = False  # not a test, whatever its name begins with

    nats: NatsServer
    postgres: PostgresServer
    redis: RedisServer

    async def settings(self) -> Settings:
        """Settings with a fresh database; nothing of the machine's environment."""
        database = f"test_{uuid4().hex}"
        await self._admin(f"CREATE DATABASE {database} TEMPLATE {TEMPLATE}")
        return Settings(
            nats_url=self.nats.url,
            database_url=self.postgres.url_of(database),
            redis_url=self.redis.url,
            consul_http_addr=None,
            namespace="",
        )

    async def _admin(self, statement: str) -> None:
        connection = await asyncpg.connect(self.postgres.url_of("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def running_servers() -> Iterator[TestServers]:
    """Start the servers in a temporary folder, stop them at the end. Outside of any event loop."""
    home = Path(tempfile.mkdtemp(prefix="perdure-harness-"))
    servers = TestServers(NatsServer(home), PostgresServer(home, fast=True), RedisServer(home))
    with asyncio.Runner() as runner:
        try:
            runner.run(_start(servers))
            yield servers
        finally:
            runner.run(_stop(servers))
            shutil.rmtree(home, ignore_errors=True)


async def _start(servers: TestServers) -> None:
    await asyncio.gather(servers.nats.start(), servers.postgres.start(), servers.redis.start())
    await servers._admin(f"CREATE DATABASE {TEMPLATE}")  # noqa: SLF001 -- the class of this file
    await migrate(Settings(database_url=servers.postgres.url_of(TEMPLATE), namespace=""))


async def _stop(servers: TestServers) -> None:
    await asyncio.gather(servers.nats.kill(), servers.redis.kill(), servers.postgres.stop())
