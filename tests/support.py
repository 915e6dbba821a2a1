"""What tests share that is not a fixture."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from perdure.embedded.nats_server import NatsServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.redis_server import RedisServer
from perdure.settings import Settings


async def eventually(check: Callable[[], Any | Awaitable[Any]], *, timeout: float = 10.0, message: str = "") -> Any:
    """Poll `check` (sync or async) every 10 ms until it is truthy and return what it returned.

    An `AssertionError` with `message` and the last value follows after `timeout` seconds. An `AssertionError` that
    `check` raises counts as "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        last: Any
        try:
            last = check()
            if inspect.isawaitable(last):
                last = await last
        except AssertionError as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() > deadline:
            what = message or getattr(check, "__name__", repr(check))
            raise AssertionError(f"not within {timeout} s: {what}; last: {last!r}")
        await asyncio.sleep(0.01)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder of one test. Not pytest's `tmp_path`: other users may not pass through that, and Postgres must."""
    folder = Path(tempfile.mkdtemp(prefix=f"perdure-test-{prefix}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SharedPostgres:
    """One test's database on the worker's Postgres. That server serves other tests, so it is not killed here."""

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._server = server
        self.database = database
        self.url = server.url_of(database)
        self.pid = server.pid
        self.data_dir = server.data_dir

    async def start(self) -> NoReturn:
        """Refused."""
        self._refuse()

    stop = kill = restart = start

    def _refuse(self) -> NoReturn:
        raise AssertionError("this Postgres is shared: ask for the fixture `own_postgres` to stop or kill one")


@dataclass(slots=True)
class Servers:
    """The servers of one test; each has `url`, `pid`, `data_dir`, `start`, `stop`, `kill` and `restart`."""

    nats: NatsServer
    postgres: PostgresServer | SharedPostgres
    redis: RedisServer


@dataclass(slots=True)
class OwnServers(Servers):
    """The servers of a test that stops or kills Postgres too."""

    postgres: PostgresServer


def settings_for(servers: Servers, home: Path, **changed: Any) -> Settings:
    """Settings that name these servers; `changed` are fields that differ, the environment is not looked at."""
    named = {"nats_url": servers.nats.url, "database_url": servers.postgres.url, "redis_url": servers.redis.url}
    return Settings(**{"consul_http_addr": None, "namespace": "", "home": home, **named, **changed})
