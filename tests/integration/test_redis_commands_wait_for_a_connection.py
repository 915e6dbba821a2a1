"""However many commands a process has for Redis in one moment, they take turns, and none of them is refused for it."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from perdure.config.last_known_good import LastKnownGood
from perdure.config.snapshot import AgentConfig
from perdure.settings import Settings
from perdure.store import redis as store
from perdure.store.redis import MOST_CONNECTIONS, create_redis, key_of

AGENTS = 250


async def test_250_agents_of_one_process_all_keep_their_last_good_configuration(settings: Settings):
    redis = create_redis(settings)
    try:
        kept = [LastKnownGood(redis, f"agent-{number}") for number in range(AGENTS)]
        made = [AgentConfig.from_row({"k": "v"}, agent_name=f"agent-{number}", revision=7) for number in range(AGENTS)]
        await asyncio.gather(*(one.save(each) for one, each in zip(kept, made, strict=True)))
        assert await asyncio.gather(*(one.load() for one in kept)) == [({"k": "v"}, 7)] * AGENTS
        clients = [each for each in await redis.client_list() if each["name"] == "perdure"]
        assert 1 < len(clients) <= MOST_CONNECTIONS
    finally:
        await redis.aclose()


async def test_a_command_does_not_wait_for_ever_and_a_cancelled_one_takes_no_place(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    redis = create_redis(settings)

    async def block() -> None:
        await redis.execute_command("BLPOP", key_of(redis, "nobody-pushes"), 0)

    blocked = [asyncio.create_task(block()) for _ in range(2)]
    try:
        while len(redis.connection_pool._in_use_connections) < 2:
            await asyncio.sleep(0)
        with pytest.raises(RedisConnectionError, match="No connection"):
            await redis.get("k")
        for each in blocked:
            each.cancel()
        await asyncio.gather(*blocked, return_exceptions=True)
        redis.connection_pool.timeout = 60  # a machine may be slow
        assert await asyncio.gather(*(redis.ping() for _ in range(20))) == [True] * 20
    finally:
        await redis.aclose()
