"""The platform that the faults are made in: services, an agent for each way to go wrong, and a Prometheus on all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import nats
import psutil
from aiohttp import web
from nats.aio.client import Client as Nats

from perdure.client import Client
from perdure.embedded.platform import Platform
from perdure.embedded.ports import free_port
from perdure.embedded.presence import described
from perdure.embedded.processes import CORE, GATEWAY, ProcessSpec
from perdure.errors import ApiError
from perdure.settings import Settings
from tests.alerts.prometheus import Prometheus, prometheus
from tests.support import temporary_folder

AGENTS = ("shop", "failing", "killer", "holder", "stubborn", "talker", "spender")
ENVIRONMENT = {
    "PERDURE_METRICS_PORT": "0",
    "PERDURE_RUN_MAX_ATTEMPTS": "5",
    "PERDURE_CONFIG_POLL_INTERVAL": "2",
    "PERDURE_AUDIT_VERIFY_INTERVAL": "2",
    "PERDURE_POOL_SIZE": "4",
    "PERDURE_GATEWAY_MAX_STREAMS": "2",
    "PERDURE_CALLBACK_PRIVATE": "1",
    "PERDURE_CALLBACK_TIMEOUT": "30",
    "PERDURE_CALLBACK_SECRET": "secret://env/PERDURE_CALLBACK_SECRET_OF_TESTS",
    "PERDURE_CALLBACK_SECRET_OF_TESTS": "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "PERDURE_LOG_FORMAT": "json",
}


@dataclass
class Stand:
    """What faults need."""

    folder: Path
    platform: Platform
    prometheus: Prometheus
    settings: Settings
    client: Client
    nc: Nats
    sql: asyncpg.Connection
    door: str = ""
    receiver: str = ""  # an HTTP server that refuses at /refuses, hangs at /hangs and breaks elsewhere
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)

    def process(self, name: str) -> psutil.Process:
        """The process of a part."""
        return psutil.Process(next(part.pid for part in self.platform._parts if part.name == name))

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """A part, with all its children, hangs."""
        first = self.process(name)
        hung = [first, *first.children(recursive=True)]
        for each in hung:
            each.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for each in reversed(hung):
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGCONT)

    async def write(self, statement: str, *arguments: object) -> None:
        """A statement of its own."""
        async with self.alone:
            await self.sql.execute(statement, *arguments)

    async def refresh(self) -> None:
        """Prometheus looks at the processes that are there now."""
        wanted = {*(each.name for each in (*CORE, GATEWAY)), *(f"agent-{name}" for name in AGENTS)}
        async with asyncio.timeout(120):
            while True:
                found = (await described(self.nc, wait=1.0)).values()
                if wanted <= {each["process"] for each in found}:
                    break
        self.prometheus.look_at({each["metrics"].split("/")[2]: each["process"] for each in found})

    async def work(self) -> None:
        """Small runs without an end: what a platform has to do."""
        number = 0
        while True:
            number += 1
            with suppress(ApiError, TimeoutError):
                await self.client.start("shop", number)
            await asyncio.sleep(0.1)


def say(line: str) -> None:
    """What the supervisor does."""
    print(f"    {line}", flush=True)  # noqa: T201 -- it is a command


async def _receiver() -> tuple[web.AppRunner, int]:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/hangs":
            await asyncio.sleep(120)
        return web.Response(status=410 if request.path == "/refuses" else 500)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, port


@asynccontextmanager
async def stand(rules: str) -> AsyncIterator[Stand]:
    """All of it, started and then ended. Raises `FileNotFoundError` without a Prometheus."""
    os.environ.update(ENVIRONMENT)
    after = tuple(each.name for each in CORE)
    file = Path(__file__).with_name("agents.py")
    agents = [
        ProcessSpec(f"agent-{name}", ("-m", "perdure.cli.main", "agent", f"{file}:{_object(name)}"), after)
        for name in AGENTS
    ]
    runner, port = await _receiver()
    try:
        with temporary_folder("alerts") as folder:
            async with prometheus(folder, rules) as watching:
                platform = Platform(
                    Settings(home=folder / "home"), processes=[*CORE, GATEWAY, *agents], free_ports=True, fast=True,
                    offline=False, say=say,
                )  # fmt: skip
                async with platform:
                    settings = platform._named()
                    nc, sql = await nats.connect(settings.nats_url), await asyncpg.connect(settings.database_url)
                    async with Client(settings) as client:
                        made = Stand(folder, platform, watching, settings, client, nc, sql)
                        made.door, made.receiver = platform.urls.gateway_url or "", f"http://127.0.0.1:{port}"
                        try:
                            yield made
                        finally:
                            await nc.close()
                            sql.terminate()
    finally:
        await runner.cleanup()


def _object(name: str) -> str:
    return name if name in ("talker", "spender") else name.capitalize()
