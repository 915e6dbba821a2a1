"""The gateway: the platform over HTTP. Nothing in it is state: any number of gateways may run, and any may die."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import ClassVar

from perdure.bus.service import Service
from perdure.config.level import LevelFollower
from perdure.edge.app import create_app
from perdure.edge.door import Door
from perdure.edge.gate import Gate
from perdure.edge.keys import pepper
from perdure.edge.server import HttpServer, gateway_tls
from perdure.settings import Settings


async def reached_at(host: str) -> str:
    """Where others reach a server that listens on `host`.

    For all addresses it is the one that this machine's name stands for: a container and a pod know their own so, and
    nobody else may know that name. Without such a one it is the name.
    """
    if host not in ("0.0.0.0", "::"):  # noqa: S104 -- the user's choice
        return host
    name = socket.gethostname()
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # nobody knows it; or it is no name that could be asked for
        return name
    for *_, (address, *_rest) in found:
        parsed = ip_address(str(address).partition("%")[0])
        if not parsed.is_loopback and not parsed.is_link_local:
            return str(parsed)
    return name


class Gateway(Service):
    """Composition root of the gateway's process."""

    service_name: ClassVar[str] = "gateway"
    description: ClassVar[str] = "the platform over HTTP"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.door: Door
        self.server: HttpServer

    def metadata(self) -> dict[str, str]:
        """What discovery shows: where it answers."""
        return {**super().metadata(), "url": self.server.url, "config_revision": self.level.revision}

    async def on_start(self) -> None:
        """Listen."""
        self.level = LevelFollower(self.nats, self.settings)
        self.spawn(self.level.run, name="log-level")
        said = self.settings
        under = await asyncio.to_thread(pepper, said)
        gate = Gate(said, said.gateway_host, self.pool, self.redis, under)
        self.door = Door(
            said, self.nats, self.pool, self.redis, self.health, gate, traces=self.traces, observed=self.metrics
        )
        tls = await asyncio.to_thread(gateway_tls, said)
        app = await asyncio.to_thread(create_app, self.door, version=self.version)
        self.server = HttpServer(app, said.gateway_host, said.gateway_port, drain=said.drain_timeout, tls=tls)
        self.port = self.server.port
        self.address = await reached_at(said.gateway_host)
        named = f"[{self.address}]" if ":" in self.address else self.address
        self.http_check = f"{self.server.scheme}://{named}:{self.port}/readyz"
        await self.server.start()
        self.logger.info("listening", action="gateway.listening", url=self.server.url)
        await gate.tell()

    async def on_stop(self) -> None:
        """End the event streams, whose readers go elsewhere, and let requests end."""
        if hasattr(self, "door"):
            self.door.stopping.set()
        if hasattr(self, "server"):
            await self.server.stop()
            await self.door.close()
