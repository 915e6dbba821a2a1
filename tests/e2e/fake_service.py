"""The smallest process of a platform: it answers on the bus. `python fake_service.py NAME [exit code]`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from perdure.bus.service import Service, serve


class Fake(Service):
    service_name = "fake"
    needs = frozenset({"nats"})

    async def on_start(self) -> None:
        if port := os.environ.get("FAKE_PORT"):
            self.listening = socket.create_server(("127.0.0.1", int(port)))
        await asyncio.sleep(0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"cannot work: {sys.argv[1]}")
    serve(Fake())
