"""The connection to Redis: a cache and a bus for latency, never the truth."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.tls import client_context

MOST_CONNECTIONS: Final = 64  # of one client; past that commands wait for one
PATIENCE: Final = 5.0  # seconds that they wait


class _TlsConnection(SSLConnection):
    """A connection with our own context: redis-py's would also trust the authorities of the system."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context


class PrefixedRedis(Redis):
    """A client that knows what its namespace's keys begin with; `key_of` puts it there."""

    key_prefix = ""


def key_of(redis: Redis, name: str) -> str:
    """The key `name` in the namespace of `redis`."""
    return f"{getattr(redis, 'key_prefix', '')}{name}"


def create_redis(settings: Settings) -> Redis:
    """A client for `settings.redis_url`, with deadlines. Values come back as bytes.

    It connects on first use, so that a Redis that is down does not stop a process from starting; commands raise
    `redis.exceptions.RedisError` (or `TimeoutError` of redis) until it is back. A cancelled command drops its
    connection, so that its late reply never reaches the next caller. Commands past 64 at a time wait for a connection,
    at most 5 s. Raises `SetupError` for a URL that is none.
    """
    url, tls = settings.redis_url, client_context(settings, "redis")
    options: dict[str, Any] = {}
    if tls is not None:
        # The same address, but never in the clear; the pool's own class of connections gives way to ours.
        url = re.sub(r"^redis://", "rediss://", url)
        options = {"context": tls}
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            socket_timeout=5.0,
            socket_connect_timeout=5.0,
            health_check_interval=10,
            max_connections=MOST_CONNECTIONS,
            timeout=PATIENCE,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.5), 2),
            client_name="perdure",
            **options,
            driver_info=None,  # else each new connection reads the package's metadata from disk, on the loop
        )
    except (ValueError, RedisError) as error:
        raise SetupError(f"REDIS_URL is not usable: {error}. It looks like redis://127.0.0.1:6379/0") from error
    if tls is not None:
        pool.connection_class = _TlsConnection
    client = cast("PrefixedRedis", PrefixedRedis.from_pool(pool))  # it makes one of its class, and says Redis
    client.key_prefix = f"ns:{settings.namespace}:" if settings.namespace else ""
    return client
