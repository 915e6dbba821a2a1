"""Real servers for every test.

| fixture | what it is |
| --- | --- |
| `settings` | `Settings` of a platform of this test alone: its own database, nats-server and redis-server |
| `servers` | those servers: `.nats`, `.postgres`, `.redis` (`url pid data_dir start stop kill restart`) |
| `nc`, `pool`, `redis` | clients of them |
| `own_postgres` | a Postgres of this test alone, which may be killed; `settings`, `servers`, `pool` then use it |
| `own_servers`, `own_postgres_settings` | the same as `servers` and `settings`, with `own_postgres` asked for |

One Postgres serves all tests of a worker: each test gets a clone of a migrated template database.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import structlog
from blockbuster import blockbuster_ctx
from nats.aio.client import Client
from redis.asyncio import Redis

from perdure.bus.namespace import BusClient
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.redis_server import RedisServer
from perdure.settings import Settings
from perdure.store.migrate import migrate
from perdure.store.postgres import Pool, create_pool
from perdure.store.redis import create_redis
from services.scheduler.retention import Retention
from tests.command import REPLAY
from tests.support import OwnServers, Servers, SharedPostgres, settings_for, temporary_folder

TEMPLATE = "perdure_template"


def pytest_configure(config: pytest.Config) -> None:
    """With --perdure-always-replay the processes that tests start replay, too: they get this environment."""
    if config.getoption("perdure_always_replay"):
        os.environ[REPLAY] = "true"


# A shell that starts the suite in the background makes it ignore Ctrl-C, and every program that a test starts, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# structlog's own default draws tracebacks with rich, which looks at source files and so blocks the loop.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# Code that may block the loop. Starting servers means forking, probing ports and reading /proc: milliseconds at the
# start of a platform, in the loop's own thread on purpose (see Child.spawn), and never while runs are worked on.
MAY_BLOCK = ["perdure.embedded"]
# Single functions, by file, each with its reason.
MAY_BLOCK_IN: tuple[tuple[str, set[str]], ...] = (
    # reads the source of a workflow for its hash, once, when an agent starts
    ("perdure/engine/definition.py", {"_source_hash"}),
    # looks for a password file and client certificates, once a connection
    ("asyncpg/connect_utils.py", {"_parse_connect_arguments", "_parse_connect_dsn_and_args"}),
    # looks at three paths, once a process
    ("perdure/store/platform_files.py", {"platform_root"}),
)


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """A test whose code under test blocks the event loop fails."""
    with blockbuster_ctx(["perdure", "config_manager", "services"], excluded_modules=MAY_BLOCK) as buster:
        for function in buster.functions.values():
            for file, names in MAY_BLOCK_IN:
                function.can_block_in(file, names)
        yield


@pytest.fixture(scope="session")
def postgres_folders() -> Iterator[tuple[Path, Path]]:
    """(home of the worker's Postgres, a data folder just initialised to copy from)."""
    with temporary_folder("pg") as home:
        yield home, home / "pristine"


@pytest.fixture(scope="session")
def shared_postgres(postgres_folders: tuple[Path, Path]) -> Iterator[PostgresServer]:
    """The worker's Postgres, with the migrated template database."""
    home, pristine = postgres_folders
    server = PostgresServer(home, fast=True)
    with asyncio.Runner() as runner:
        runner.run(server.prepare())
        shutil.copytree(server.data_dir, pristine)
        runner.run(server.start())
        try:
            runner.run(_admin(server, f"CREATE DATABASE {TEMPLATE}"))
            template = Settings(database_url=server.url_of(TEMPLATE), namespace="")
            runner.run(migrate(template))
            runner.run(_make_shelves(template))
            yield server
        finally:
            runner.run(server.stop())


@pytest.fixture
async def own_postgres(postgres_folders: tuple[Path, Path], shared_postgres: PostgresServer) -> Any:
    """A Postgres of this test alone, migrated; asking for it makes `settings`, `servers` and `pool` use it."""
    with temporary_folder("own-pg") as home:
        server = PostgresServer(home, fast=True, template=postgres_folders[1])
        await server.start()
        try:
            await migrate(Settings(database_url=server.url, namespace=""))
            # Commits of a fast server reach its files a little later; a kill shall find the tables at least.
            await _admin(server, "CHECKPOINT")
            yield server
        finally:
            await server.stop()


@pytest.fixture
async def servers(request: pytest.FixtureRequest, shared_postgres: PostgresServer) -> AsyncIterator[Servers]:
    """The servers of this test."""
    # `own_postgres` is set up first when a test asks for both: pytest orders fixtures of one scope by their request.
    own = "own_postgres" in request.fixturenames
    with temporary_folder("servers") as home:
        nats_server, redis_server = NatsServer(home), RedisServer(home)
        try:
            await asyncio.gather(nats_server.start(), redis_server.start())
            if own:
                server: PostgresServer = request.getfixturevalue("own_postgres")
                yield OwnServers(nats=nats_server, postgres=server, redis=redis_server)
            else:
                database = f"test_{uuid4().hex}"
                await _admin(shared_postgres, f"CREATE DATABASE {database} TEMPLATE {TEMPLATE}")
                try:
                    yield Servers(nats_server, SharedPostgres(shared_postgres, database), redis_server)
                finally:
                    await _admin(shared_postgres, f"DROP DATABASE {database} WITH (FORCE)")
        finally:
            # Nothing of a test is kept: no need to let them write out.
            await asyncio.gather(nats_server.kill(), redis_server.kill())


@pytest.fixture
def settings(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Settings:
    """Settings that name this test's servers; nothing of the machine's environment."""
    replay = request.config.getoption("perdure_always_replay") and not request.node.get_closest_marker("in_memory")
    return settings_for(servers, tmp_path, always_replay=bool(replay))


@pytest.fixture
def own_servers(own_postgres: PostgresServer, servers: Servers) -> OwnServers:
    """`servers` with a Postgres that may be stopped and killed."""
    assert isinstance(servers, OwnServers)
    return servers


@pytest.fixture
def own_postgres_settings(own_servers: OwnServers, settings: Settings) -> Settings:
    """`settings` with a Postgres that may be stopped and killed."""
    return settings


@pytest.fixture
async def nc(settings: Settings) -> AsyncIterator[Client]:
    """A plain NATS client, as another program would use, but that its `flush` is about what was sent before."""
    client = BusClient()
    await client.connect(settings.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    yield client
    await client.close()


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """A pool on this test's database."""
    made = await create_pool(settings, "test")
    yield made
    made.terminate()


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of this test's Redis."""
    client = create_redis(settings)
    yield client
    await client.aclose()


async def _make_shelves(settings: Settings) -> None:
    """What a scheduler does first, once for all tests."""
    pool = await create_pool(settings, "template")
    try:
        await Retention(pool, settings).make_ahead()
    finally:
        await pool.close()


async def _admin(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.url_of("postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
