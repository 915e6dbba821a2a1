"""One agent over HTTP, from within the program that runs it."""

from __future__ import annotations

import asyncio
import threading

from perdure.agent.process import AgentProcess
from perdure.edge.app import create_app
from perdure.edge.door import Door
from perdure.edge.gate import Gate
from perdure.edge.keys import pepper
from perdure.edge.server import HttpServer, gateway_tls


class Serving:
    """The door of one agent's process; `ended` is set when it is closed."""

    def __init__(self, door: Door, server: HttpServer) -> None:
        self._door = door
        self._server = server
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """Where it answers."""
        return self._server.url

    @classmethod
    async def start(cls, process: AgentProcess, host: str, port: int) -> Serving:
        """Listen. Raises `SetupError` for an address that cannot be listened on."""
        said = process.settings
        under = await asyncio.to_thread(pepper, said)
        gate = Gate(said, host, process.pool, process.redis, under)
        ends = (process.nats, process.pool, process.redis, process.health)
        door = Door(said, *ends, gate, only=process.name, traces=process.traces, observed=process.metrics)
        app = await asyncio.to_thread(create_app, door, version=process.version)
        tls = await asyncio.to_thread(gateway_tls, said)
        server = HttpServer(app, host, port, drain=said.drain_timeout, tls=tls)
        await server.start()
        await gate.tell()
        return cls(door, server)

    async def stop(self) -> None:
        """End the event streams, let requests end, close. Safe to repeat."""
        self._door.stopping.set()
        self._door.observed.remove(self._door.metrics.readings)
        await self._server.stop()
        await self._door.close()
        self.ended.set()
