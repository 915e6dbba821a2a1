"""No configuration change is lost, and no agent goes back, while everything around it is killed.

Five writers write by SQL and by `config.set`. Meanwhile two ConfigManager processes, LISTEN connections, nats-server
and Postgres are killed at random. PERDURE_CHAOS_CHANGES and PERDURE_CHAOS_SEED make it longer, or repeat one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from contextlib import AsyncExitStack

import asyncpg
import nats
import pytest

from perdure.bus.connection import connect
from perdure.bus.wire import request
from perdure.config.client import ConfigClient
from perdure.config.keys import DurableAgentSettings
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.errors import Conflict, InvalidRequest, Unavailable
from perdure.settings import Settings
from perdure.store.migrate import migrate
from perdure.store.redis import create_redis
from tests.config_support import PUT
from tests.support import eventually, temporary_folder

CHANGES = int(os.environ.get("PERDURE_CHAOS_CHANGES", "400"))
SEED = int(os.environ.get("PERDURE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
AGENTS = ("assistant", "mailer", "sorter")
LAYERS = (*AGENTS, "*")
GONE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Manager:
    """A ConfigManager process that may be killed at any moment."""

    def __init__(self, settings: Settings, **environment: str) -> None:
        self._environment = {
            **os.environ,
            **environment,
            "NATS_URL": settings.nats_url,
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "config_manager", env=self._environment, stdout=-3, stderr=-3
        )

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


class Writer:
    """Writes rising numbers under keys of its own, now and then a bad value; repeats what may not have arrived."""

    def __init__(self, number: int, settings: Settings, dice: random.Random) -> None:
        self.number = number
        self.settings = settings
        self.dice = dice
        self.last: dict[tuple[str, str], str] = {}

    async def write(self, count: int) -> None:
        nc = await nats.connect(self.settings.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        connection = None
        for turn in range(count):
            layer = self.dice.choice(LAYERS)
            key, value = f"writer_{self.number}", str(turn)
            if self.dice.random() < 0.1:
                key, value = "max_iterations", self.dice.choice(["many", "0", str(1 + turn % 1000)])
            by_sql = key == "max_iterations" or self.dice.random() < 0.5
            while True:
                try:
                    if by_sql:
                        if connection is None or connection.is_closed():
                            connection = await asyncpg.connect(self.settings.database_url, timeout=5)
                        await connection.execute(PUT, layer, key, value, timeout=10)
                    else:
                        body = {"agent_name": layer, "configurations": {key: value}}
                        await request(nc, "config.set", body, timeout=5)
                    break
                except (*GONE, Unavailable, Conflict):
                    if connection is not None:
                        connection.terminate()
                        connection = None
                    await asyncio.sleep(0.05)
                except InvalidRequest as error:
                    raise AssertionError(f"{layer} {key}={value}: {error}") from error
            if key.startswith("writer"):
                self.last[layer, key] = value
            await asyncio.sleep(self.dice.random() * 0.01)
        await nc.close()
        if connection is not None:
            connection.terminate()


async def test_every_agent_ends_on_the_last_good_revision_and_saw_them_in_order(
    postgres_folders, redis, settings, tmp_path
) -> None:
    dice = random.Random(SEED)
    async with AsyncExitStack() as stack:
        home = stack.enter_context(temporary_folder("chaos"))
        postgres = PostgresServer(home, template=postgres_folders[1])  # one that keeps its word: commits outlive kills
        nats_server = NatsServer(home)
        await asyncio.gather(postgres.start(), nats_server.start())
        stack.push_async_callback(postgres.stop)
        stack.push_async_callback(nats_server.stop)
        here = settings.model_copy(
            update={
                "database_url": postgres.url,
                "nats_url": nats_server.url,
                "config_poll_interval": 3.0,
            }
        )
        await migrate(here)
        managers = [Manager(here), Manager(here)]
        for each in managers:
            await each.start()
            stack.push_async_callback(each.kill)
        seen: dict[str, list[int]] = {name: [] for name in AGENTS}
        own_redis = create_redis(here)
        stack.push_async_callback(own_redis.aclose)
        clients = [await agent(stack, here, own_redis, name, seen[name]) for name in AGENTS]

        writers = [Writer(number, here, random.Random(SEED + number)) for number in range(5)]
        writing = asyncio.gather(*(writer.write(CHANGES // 5) for writer in writers))
        try:
            while not writing.done():
                await disturb(dice, managers, nats_server, postgres, here)
                await asyncio.wait([writing], timeout=dice.uniform(0.2, 0.8))
            await writing
        finally:
            writing.cancel()
        for each in managers:
            if each.process.returncode is not None:
                await each.start()
        await finished(here, writers, clients)
        for name in AGENTS:
            assert seen[name] == sorted(set(seen[name])), f"{name} went back (seed {SEED})"


async def agent(stack, settings, redis, name, seen) -> ConfigClient:
    async def reconnected() -> None:
        await client.reconcile()

    async def on_change(update, snapshot) -> None:
        assert update.revision == snapshot.revision
        seen.append(snapshot.revision)

    nc = await connect(settings, name, on_reconnect=reconnected)
    stack.push_async_callback(nc.close)
    client = ConfigClient(
        nats=nc,
        redis=redis,
        settings=settings,
        agent_name=name,
        instance_id=f"{name}-1",
        settings_model=DurableAgentSettings,
        on_change=on_change,
    )
    await client.start(patience=20)
    stack.push_async_callback(client.stop)
    return client


async def disturb(dice, managers, nats_server, postgres, settings) -> None:
    what = dice.choice(["manager", "manager", "listen", "listen", "nats", "postgres"])
    if what == "manager":
        each = dice.choice(managers)
        await each.kill()
        await each.start()
    elif what == "listen":
        with contextlib.suppress(*GONE):
            connection = await asyncpg.connect(settings.database_url, timeout=5)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'perdure config-manager listen'"
            )
            await connection.close()
    else:
        server = nats_server if what == "nats" else postgres
        await server.kill()
        await server.start()


async def finished(settings, writers, clients) -> None:
    connection = await asyncpg.connect(settings.database_url)
    newest = await connection.fetchval("SELECT revision FROM config_counter")
    heads = dict(await connection.fetch("SELECT agent_name, revision FROM config_heads"))
    rows = await connection.fetch("SELECT agent_name, config_key, config_value FROM agent_configurations")
    standing = {(row["agent_name"], row["config_key"]): row["config_value"] for row in rows}
    for writer in writers:
        for where, value in writer.last.items():
            assert standing[where] == value, f"a committed write is gone: {where} (seed {SEED})"
    history = await connection.fetchval("SELECT count(DISTINCT revision) FROM config_history")
    assert history == newest

    async def told() -> bool:
        return await connection.fetchval("SELECT revision FROM config_broadcast") == newest

    await eventually(told, timeout=30, message=f"every revision is broadcast (seed {SEED})")
    for client in clients:
        name = client.snapshot.agent_name
        wanted = max(heads.get(name, 0), heads.get("*", 0))
        await eventually(
            lambda client=client, wanted=wanted: client.snapshot.revision == wanted,
            timeout=30,
            message=f"{name} stands on revision {wanted} (seed {SEED})",
        )
        merged = {key: value for (layer, key), value in standing.items() if layer == "*"}
        merged |= {key: value for (layer, key), value in standing.items() if layer == name}
        numbers = {key: value for key, value in merged.items() if key.startswith("writer")}
        got = {key: value for key, value in client.snapshot.values.items() if key.startswith("writer")}
        assert got == numbers
        iterations = client.snapshot.get_setting("max_iterations")
        assert iterations is None or 1 <= iterations <= 1000
    await connection.close()


@pytest.fixture(autouse=True)
def no_blocking():
    """This test starts processes of its own; what it watches is checked for blocking elsewhere."""
    return
