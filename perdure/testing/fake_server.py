"""What servers for tests share: they listen on loopback, on a free port unless one is named."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from typing import Self

from aiohttp import web


class FakeServer(ABC):
    """`async with` serves; a subclass says in `app` what it answers, and in `listening` where that is."""

    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Listen on `port` of the loopback address; 0 takes a free one. With `tls` over HTTPS."""
        self._runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls).start()
        host, bound = self._runner.addresses[0][:2]
        self.listening(f"{host}:{bound}")

    async def stop(self) -> None:
        """Stop listening; what it knows is kept for the next `start`."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @abstractmethod
    def app(self) -> web.Application:
        """What is answered."""

    @abstractmethod
    def listening(self, address: str) -> None:
        """It listens on `address` (`host:port`)."""
