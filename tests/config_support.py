"""What the tests of configuration share: managers and agents in this process, on the test's own servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from nats.aio.client import Client
from pydantic import BaseModel
from redis.asyncio import Redis

from config_manager.service import ConfigManager
from perdure.config.client import ConfigClient
from perdure.config.keys import DurableAgentSettings
from perdure.settings import Settings
from tests.support import eventually

PUT = (
    "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ($1, $2, $3) "
    "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = EXCLUDED.config_value"
)


@asynccontextmanager
async def manager(settings: Settings, **instance: Any) -> AsyncIterator[ConfigManager]:
    """A ConfigManager that listens."""
    service = ConfigManager(settings.model_copy(update=instance))
    await service.start()
    try:
        await eventually(lambda: service.sync.listening)
        yield service
    finally:
        await service.stop()


@asynccontextmanager
async def following(
    nc: Client,
    redis: Redis,
    settings: Settings,
    name: str = "assistant",
    *,
    instance_id: str = "i-1",
    model: type[BaseModel] | None = DurableAgentSettings,
    on_change: Any = None,
    patience: float = 2.0,
) -> AsyncIterator[ConfigClient]:
    """The configuration side of one agent process, started."""
    client = ConfigClient(
        nats=nc,
        redis=redis,
        settings=settings,
        agent_name=name,
        instance_id=instance_id,
        settings_model=model,
        on_change=on_change,
    )
    await client.start(patience=patience)
    try:
        yield client
    finally:
        await client.stop()


async def ask(nc: Client, subject: str, body: Any = None, *, timeout: float = 5.0) -> dict[str, Any]:
    """Request as a plain client would: JSON in, JSON out, errors as they come."""
    data = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    reply: dict[str, Any] = orjson.loads((await nc.request(subject, data, timeout=timeout)).data)
    return reply


async def messages(nc: Client, subject: str) -> list[dict[str, Any]]:
    """A list that grows by every message on `subject` from now on."""
    heard: list[dict[str, Any]] = []

    async def hear(message: Any) -> None:
        heard.append(orjson.loads(message.data))

    await nc.subscribe(subject, cb=hear)
    await nc.flush()
    return heard
