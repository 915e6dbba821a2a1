"""With Redis as the source no configuration change is lost, while everything around it is killed.

Five writers write by SET and by `config.set`. Meanwhile two ConfigManager processes, redis-server, its connections and
nats-server are killed at random. PERDURE_CHAOS_REDIS_CHANGES and PERDURE_CHAOS_SEED make it longer, or repeat one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from contextlib import AsyncExitStack

import nats
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from perdure.bus.wire import request
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.redis_server import RedisServer
from perdure.errors import Conflict, InvalidRequest, Unavailable
from perdure.store.redis import create_redis
from tests.chaos.test_config_no_update_lost import AGENTS, LAYERS, SEED, Manager, agent
from tests.support import eventually, temporary_folder

CHANGES = int(os.environ.get("PERDURE_CHAOS_REDIS_CHANGES", "75"))
GONE = (RedisError, OSError, TimeoutError)


class CarefulRedis(RedisServer):
    """One that keeps its word: what it has acknowledged outlives a kill."""

    def command(self) -> list[str]:
        return [*super().command(), "--appendfsync", "always"]


class Writer:
    """Writes rising numbers under keys of its own, now and then a bad value; repeats what may not have arrived."""

    def __init__(self, number: int, settings, dice: random.Random) -> None:
        self.number = number
        self.settings = settings
        self.dice = dice
        self.last: dict[tuple[str, str], str] = {}

    async def write(self, count: int) -> None:
        nc = await nats.connect(self.settings.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        redis = Redis.from_url(self.settings.redis_url, socket_timeout=5, driver_info=None)
        for turn in range(count):
            layer = self.dice.choice(LAYERS)
            key, value = f"writer_{self.number}", str(turn)
            if self.dice.random() < 0.1:
                key, value = "max_iterations", self.dice.choice(["many", "0", str(1 + turn % 1000)])
            by_set = key == "max_iterations" or self.dice.random() < 0.5
            while True:
                try:
                    if by_set:
                        await redis.set(f"config:{layer}:{key}", value)
                    else:
                        body = {"agent_name": layer, "configurations": {key: value}}
                        await request(nc, "config.set", body, timeout=5)
                    break
                except (*GONE, Unavailable, Conflict):
                    await asyncio.sleep(0.05)
                except InvalidRequest as error:
                    raise AssertionError(f"{layer} {key}={value}: {error}") from error
            if key.startswith("writer"):
                self.last[layer, key] = value
            await asyncio.sleep(self.dice.random() * 0.01)
        await nc.close()
        await redis.aclose()


async def test_every_agent_ends_on_the_last_good_value_and_saw_revisions_in_order(settings, pool) -> None:
    dice = random.Random(SEED)
    async with AsyncExitStack() as stack:
        home = stack.enter_context(temporary_folder("redis-chaos"))
        redis_server, nats_server = CarefulRedis(home), NatsServer(home)
        await asyncio.gather(redis_server.start(), nats_server.start())
        stack.push_async_callback(redis_server.stop)
        stack.push_async_callback(nats_server.stop)
        here = settings.model_copy(
            update={"redis_url": redis_server.url, "nats_url": nats_server.url, "config_poll_interval": 3.0}
        )
        managers = [Manager(here, PERDURE_CONFIG_STORE="redis") for _ in range(2)]
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
                await disturb(dice, managers, nats_server, redis_server, own_redis)
                await asyncio.wait([writing], timeout=dice.uniform(0.2, 0.8))
            await writing
        finally:
            writing.cancel()
        for each in managers:
            if each.process.returncode is not None:
                await each.start()
        await finished(pool, own_redis, writers, clients)
        for name in AGENTS:
            assert seen[name] == sorted(set(seen[name])), f"{name} went back (seed {SEED})"


async def disturb(dice, managers, nats_server, redis_server, redis) -> None:
    what = dice.choice(["manager", "manager", "connections", "connections", "nats", "redis"])
    if what == "manager":
        each = dice.choice(managers)
        await each.kill()
        await each.start()
    elif what == "connections":
        with contextlib.suppress(*GONE):
            await redis.client_kill_filter(_type="pubsub")
    else:
        server = nats_server if what == "nats" else redis_server
        await server.kill()
        await server.start()


async def finished(pool, redis, writers, clients) -> None:
    async def settled() -> bool:
        rows = await pool.fetch("SELECT agent_name, config_key, config_value FROM agent_configurations")
        standing = {(row["agent_name"], row["config_key"]): row["config_value"] for row in rows}
        for writer in writers:
            for where, value in writer.last.items():
                assert standing.get(where) == value, f"{where} stands at {standing.get(where)}, not {value}"
        for (layer, key), value in standing.items():
            assert await redis.get(f"config:{layer}:{key}") == value.encode(), (layer, key)
        told = await pool.fetchval("SELECT revision FROM config_broadcast")
        assert told == await pool.fetchval("SELECT revision FROM config_counter")
        return True

    await eventually(settled, timeout=30, message=f"a write is gone (seed {SEED})")
    heads = dict(await pool.fetch("SELECT agent_name, revision FROM config_heads"))
    rows = await pool.fetch("SELECT agent_name, config_key, config_value FROM agent_configurations")
    history = await pool.fetchval("SELECT count(DISTINCT revision) FROM config_history")
    assert history == await pool.fetchval("SELECT revision FROM config_counter")
    for client in clients:
        name = client.snapshot.agent_name
        wanted = max(heads.get(name, 0), heads.get("*", 0))
        await eventually(
            lambda client=client, wanted=wanted: client.snapshot.revision == wanted,
            timeout=30,
            message=f"{name} stands on revision {wanted} (seed {SEED})",
        )
        merged = {row["config_key"]: row["config_value"] for row in rows if row["agent_name"] == "*"}
        merged |= {row["config_key"]: row["config_value"] for row in rows if row["agent_name"] == name}
        numbers = {key: value for key, value in merged.items() if key.startswith("writer")}
        got = {key: value for key, value in client.snapshot.values.items() if key.startswith("writer")}
        assert got == numbers
        iterations = client.snapshot.get_setting("max_iterations")
        assert iterations is None or 1 <= iterations <= 1000


@pytest.fixture(autouse=True)
def no_blocking():
    """This test starts processes of its own; what it watches is checked for blocking elsewhere."""
    return
