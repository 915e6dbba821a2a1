"""The console: a page that shows agents, runs, approvals and configuration, over the gateway's HTTP API alone."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from perdure.bus.service import Service
from perdure.edge.gate import is_loopback
from perdure.edge.server import HttpServer
from perdure.settings import Settings
from services.console.app import create_app
from services.console.relay import Relay


class Console(Service):
    """Composition root of the console's process. It has no rights of its own: who looks brings a key."""

    service_name: ClassVar[str] = "console"
    description: ClassVar[str] = "a page for people"
    needs: ClassVar[frozenset[str]] = frozenset({"nats"})

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.relay: Relay
        self.server: HttpServer

    def metadata(self) -> dict[str, str]:
        """What discovery shows: where it answers."""
        return {**super().metadata(), "url": self.server.url}

    async def on_start(self) -> None:
        """Listen."""
        said = self.settings
        self.relay = Relay(said.gateway_url)
        app = await asyncio.to_thread(create_app, self.relay, local=is_loopback(said.console_host))
        self.server = HttpServer(app, said.console_host, said.console_port, drain=said.drain_timeout)
        self.port = self.server.port
        await self.server.start()
        self.logger.info("listening", action="console.listening", url=self.server.url)

    async def on_stop(self) -> None:
        """End the streams and let requests end."""
        if hasattr(self, "relay"):
            self.relay.stopping.set()
        if hasattr(self, "server"):
            await self.server.stop()
        if hasattr(self, "relay"):
            await self.relay.close()
