"""nats-server with JetStream."""

from __future__ import annotations

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

    async def ready(self) -> bool:
        """The greeting of our server, by the name we gave it, with JetStream up."""
        greeting = await ask(self.port, b"")
        return b'"jetstream":true' in greeting and f'"server_name":"{self.id}"'.encode() in greeting
