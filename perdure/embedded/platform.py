"""The local platform: servers, migrations, processes, in order; watched while they run; stopped in reverse.

async with Platform(settings, home=Path(".perdure")) as platform:
platform.urls.nats_url
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

import structlog
from nats.aio.client import Client
from redis.exceptions import RedisError

from perdure.bus.connection import connect
from perdure.bus.streams import ensure_streams
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.offline_server import OfflineServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.processes import CONSOLE, GATEWAY, PlatformProcess, ProcessSpec, declared_processes, in_waves
from perdure.embedded.redis_server import RedisServer
from perdure.embedded.server import EmbeddedServer
from perdure.embedded.state import (
    Part,
    PlatformState,
    PlatformUrls,
    Running,
    end_leftovers,
    remove_state,
    take_lock,
    write_state,
)
from perdure.embedded.watch import Watch
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.migrate import migrate
from perdure.store.redis import create_redis

DEFAULT_PORTS: Mapping[str, int] = {"nats": 4222, "postgres": 5432, "redis": 6379, "offline-model": 9800}
_SERVERS: tuple[tuple[str, str, type[EmbeddedServer]], ...] = (
    ("nats", "nats_url", NatsServer),
    ("postgres", "database_url", PostgresServer),
    ("redis", "redis_url", RedisServer),
)
_log = structlog.get_logger()


class Platform:
    """One platform in one home.

    `settings` says which servers are given (the fields that were set, by the environment or by hand); the others are
    embedded. `processes` are those to run beside the servers, `None` all of them, `()` none. `free_ports` takes free
    ports at once instead of trying the default ones first. `offline` starts the offline model, `None` when neither
    `OPENAI_API_KEY` nor `OPENAI_BASE_URL` is set. `say` is told in one line what happens. `fast` leaves out fsync.
    `shared` is noted for others to read: see `perdure.embedded.keeper`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        home: Path | None = None,
        processes: Sequence[ProcessSpec] | None = None,
        free_ports: bool = False,
        offline: bool | None = None,
        say: Callable[[str], None] | None = None,
        fast: bool = False,
        shared: bool = False,
    ) -> None:
        self.home = (home or settings.home).resolve()
        self.urls = PlatformUrls(settings.nats_url, settings.database_url, settings.redis_url)
        self.state: PlatformState | None = None
        self._settings = settings
        self._specs = processes
        self._free_ports = free_ports
        wants_offline = not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"))
        self._offline = wants_offline if offline is None else offline
        self._say = say or _to_log
        self._fast = fast
        self._shared = shared
        self._parts: list[EmbeddedServer | PlatformProcess] = []
        self._given: list[Part] = []
        self._watch = Watch(self._say, on_restart=self._write)
        self._lock: IO[bytes] | None = None
        self._nc: Client | None = None
        self._stopped: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> PlatformUrls:
        """Start all of it; returns when each part answers.

        Raises `SetupError` (and then leaves nothing running), `AlreadyRunning` when the home is in use.
        """
        self._lock = take_lock(self.home)
        try:
            waves = in_waves(declared_processes(self._settings) if self._specs is None else list(self._specs))
            for name in await end_leftovers(self.home):
                self._say(f"{name} was left over from a start that was killed: ended it")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.state = PlatformState(Running.of(os.getpid()), now, shared=self._shared)
            await self._check_given()
            await self._start_servers()
            await self._migrate()
            for wave in waves:
                await self._start_wave(wave)
        except BaseException:
            await self.stop()
            raise
        self._write(ready=True)
        return self.urls

    async def stop(self) -> None:
        """Drain and end all of it in the reverse order of its start. Safe to repeat."""
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._stopped)

    async def kill(self) -> None:
        """End all of it at once: what a second Ctrl-C asks for."""
        await self._watch.close()
        await asyncio.gather(*(part.kill() for part in self._parts))

    async def _start_servers(self) -> None:
        servers: list[EmbeddedServer] = []
        for name, field, kind in _SERVERS:
            if field in self._settings.model_fields_set:
                self._given.append(Part(name, None, url=getattr(self._settings, field), note="given"))
            elif kind is PostgresServer:
                servers.append(PostgresServer(self.home, port=self._port(name), fast=self._fast))
            else:
                servers.append(kind(self.home, port=self._port(name)))
        if self._offline:
            servers.append(OfflineServer(self.home, port=self._port("offline-model")))
        await self._start_parts(servers)
        found = {server.name: server.url for server in servers}
        self.urls = PlatformUrls(
            found.get("nats", self._settings.nats_url),
            found.get("postgres", self._settings.database_url),
            found.get("redis", self._settings.redis_url),
            found.get("offline-model"),
        )

    async def _start_wave(self, wave: Sequence[ProcessSpec]) -> None:
        if self._nc is None:
            self._nc = await connect(self._named(), "supervisor")
        env = {**self.urls.environment(), "PERDURE_HOME": str(self.home)}
        parts = [
            PlatformProcess(spec, home=self.home, env=env, nc=self._nc, free_port=self._free_ports) for spec in wave
        ]
        await self._start_parts(parts)
        url_of = {part.name: part.url for part in parts}
        self.urls = replace(
            self.urls,
            gateway_url=url_of.get(GATEWAY.name, self.urls.gateway_url),
            console_url=url_of.get(CONSOLE.name, self.urls.console_url),
        )

    async def _start_parts(self, parts: Sequence[EmbeddedServer | PlatformProcess]) -> None:
        # Known before they run, so that a failure or a signal in between stops them too.
        self._parts.extend(parts)
        for part in parts:
            self._say(f"starting {part.name}")
        tasks = [asyncio.ensure_future(self._tell(part.start())) for part in parts]
        try:
            # The first failure ends the start: the others need not be waited for.
            for task in asyncio.as_completed(tasks):
                await task
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for part in parts:
            self._watch.add(part)

    async def _tell(self, starting: Awaitable[None]) -> None:
        await starting
        self._write()

    async def _check_given(self) -> None:
        """A given server that does not answer is said now, by its variable, not by each process later."""
        if "redis_url" in self._settings.model_fields_set:
            redis = create_redis(self._settings)
            try:
                await redis.ping()
            except (RedisError, OSError) as error:
                where = self._settings.redis_url.rpartition("@")[2]
                said = str(error).rstrip(".")
                raise SetupError(f"Redis at {where} cannot be used: {said}. Check REDIS_URL, or unset it.") from error
            finally:
                await redis.aclose()
        if "nats_url" in self._settings.model_fields_set:
            self._nc = await connect(self._named(), "supervisor")
            await ensure_streams(self._nc.jetstream())

    async def _migrate(self) -> None:
        applied = await migrate(self._named())
        self._say(f"migrations: {len(applied)} applied" if applied else "migrations: up to date")

    async def _stop(self) -> None:
        await self._watch.close()
        self._write(ready=False)  # nobody shall join now
        patience = self._settings.drain_timeout + 5
        processes = [part for part in self._parts if isinstance(part, PlatformProcess)]
        # Agents first, while the services they talk to are there; servers last. Their waves are in order.
        agents = [each for each in processes if each.name.startswith("agent-")]
        services = [each for each in processes if each not in agents]
        for group in (agents, services):
            await asyncio.gather(*(each.stop(timeout=patience) for each in reversed(group)))
        if self._nc is not None:
            await self._nc.close()
        servers = [part for part in self._parts if isinstance(part, EmbeddedServer)]
        await asyncio.gather(*(server.stop() for server in reversed(servers)))
        if self._lock is not None:
            if self.state is not None:
                remove_state(self.home)
            self._lock.close()
            self._lock = None

    def _named(self) -> Settings:
        """Our settings with the URLs of this platform."""
        found = {
            "nats_url": self.urls.nats_url,
            "database_url": self.urls.database_url,
            "redis_url": self.urls.redis_url,
        }
        return self._settings.model_copy(update=found)

    def _port(self, name: str) -> int | None:
        return None if self._free_ports else DEFAULT_PORTS[name]

    def _write(self, *, ready: bool | None = None) -> None:
        if self.state is None:
            return
        parts = tuple(_part(part) for part in self._parts)
        self.state = self.state.with_parts(
            (*self._given, *parts),
            urls=self.urls,
            ready=self.state.ready if ready is None else ready,
            offline_model_url=self.urls.offline_model_url,
        )
        write_state(self.home, self.state)


def _part(part: EmbeddedServer | PlatformProcess) -> Part:
    running = Running.of(part.pid) if part.running else None
    return Part(part.name, running, part.url, str(part.log_file), part.note, int(part.stop_signal))


def _to_log(line: str) -> None:
    _log.info(line, action="platform.event")
