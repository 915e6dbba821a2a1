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
        """It has loaded its data."""
        return await ask(self.port, b"PING\r\n") == b"+PONG\r\n"
