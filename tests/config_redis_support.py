"""What the tests of Redis as the source of configuration share."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from tests.config_support import ask, manager
from tests.support import eventually


@pytest.fixture
def mode(settings, monkeypatch):
    """Nothing is found by polling, unless a test says so."""
    monkeypatch.setattr("config_manager.service.POLL", 3600.0)
    return settings.model_copy(update={"config_store": "redis", "config_poll_interval": 3600.0})


@asynccontextmanager
async def source(settings, **instance):
    async with manager(settings, **instance) as service:
        await eventually(service.source.connected.is_set)
        service.source.mirror.grace = 0.1
        yield service


async def reads(nc, expected, agent="assistant") -> None:
    async def check() -> bool:
        assert (await ask(nc, f"config.get.{agent}"))["configurations"] == expected
        return True

    await eventually(check)


async def stands(redis, key, value) -> None:
    async def check() -> bool:
        assert await redis.get(key) == value
        return True

    await eventually(check)


async def agreed(service, revision) -> None:
    """The table stands at a revision, and nothing is left to be done about it in Redis."""
    await eventually(lambda: service.table.revision == revision)
    await service.source.look_at_all()
