"""Closing what a service holds, each with a deadline: a server that hangs does not keep a process alive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import redis.asyncio
from nats.aio.client import Client

from perdure.store.postgres import Pool

CLOSE_TIMEOUT: Final = 5.0

Close = Callable[[], Awaitable[Any]]


async def close_nats(client: Client, logger: Any) -> None:
    """Drain and close the connection."""

    async def drain() -> None:
        # `drain` raises while reconnecting: then nothing can be sent, and closing is all there is to do.
        if client.is_connected:
            await client.drain()
        elif not client.is_closed:
            await client.close()

    await _closing("nats", drain, client.close, logger)


async def close_pool(pool: Pool, logger: Any) -> None:
    """Close the pool when its queries have ended, or cut them."""

    async def terminate() -> None:
        pool.terminate()

    await _closing("postgres", pool.close, terminate, logger)


async def close_redis(client: redis.asyncio.Redis, logger: Any) -> None:
    """Close the client's connections."""
    await _closing("redis", client.aclose, None, logger)


async def _closing(what: str, close: Close, by_force: Close | None, logger: Any) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await close()
    except Exception as error:  # noqa: BLE001 - logged; the process ends either way
        logger.warning(
            "could not close in order",
            action="service.not_closed",
            resource=what,
            error=str(error) or type(error).__name__,
        )
        if by_force is not None:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await by_force()
