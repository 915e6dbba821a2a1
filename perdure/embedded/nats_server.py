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
            *(str(binaries.nats_server()), "--addr", HOST, "--port", str(self.port), "--name", "perdure"),
            *("--jetstream", "--store_dir", str(self.data_dir)),
        ]

    async def ready(self) -> bool:
        """The greeting of a server whose JetStream is up."""
        return b'"jetstream":true' in await ask(self.port, b"")
