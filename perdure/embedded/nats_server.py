"""nats-server with JetStream."""

from __future__ import annotations

import os

from perdure.embedded import binaries
from perdure.embedded.ports import HOST
from perdure.embedded.server import EmbeddedServer, ask


class NatsServer(EmbeddedServer):
    """A nats-server on loopback, without accounts; its JetStream store is in the data folder."""

    name = "nats"

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`."""
        return f"nats://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [
            *(str(binaries.nats_server()), "--addr", HOST, "--port", str(self.port), "--name", self.id),
            *("--jetstream", "--store_dir", str(self.data_dir)),
        ]

    def environment(self) -> dict[str, str]:
        """With a thread for every two cores, unless GOMAXPROCS says otherwise: the other parts are here, too.

        With more threads it is sooner at every message, and wakes the others for less at a time.
        """
        return {"GOMAXPROCS": str(max(1, (os.cpu_count() or 1) // 2)), **super().environment()}

    async def ready(self) -> bool:
        """The greeting of our server, by the name we gave it, with JetStream up."""
        greeting = await ask(self.port, b"")
        return b'"jetstream":true' in greeting and f'"server_name":"{self.id}"'.encode() in greeting
