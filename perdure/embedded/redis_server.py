"""redis-server with an append-only file."""

from __future__ import annotations

from perdure.embedded import binaries
from perdure.embedded.ports import HOST
from perdure.embedded.server import EmbeddedServer, ask


class RedisServer(EmbeddedServer):
    """A redis-server on loopback. It loses at most a second on a power cut, and it is only a cache."""

    name = "redis"

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [
            *(str(binaries.redis_server()), "--bind", HOST, "--port", str(self.port), "--dir", str(self.data_dir)),
            # A last snapshot at the end would only delay the stop: the append-only file has it all.
            *("--appendonly", "yes", "--save", "", "--daemonize", "no", "--maxmemory-policy", "noeviction"),
        ]

    async def ready(self) -> bool:
        """It has loaded its data, and is our child by its process id."""
        said = await ask(self.port, b"INFO server\r\nPING\r\n", until=b"+PONG\r\n")
        return f"\r\nprocess_id:{self.pid}\r\n".encode() in said and said.endswith(b"+PONG\r\n")
