"""An HTTP server inside a process that has a life of its own: no signal handlers, no logging set-up, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.tls import server_context

BACKLOG: Final = 4096


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process that serves."""
        yield


class HttpServer:
    """Serves an app on `host:port`; port 0 takes a free one, `port` says which."""

    def __init__(self, app: ASGIApp, host: str, port: int, *, drain: float, tls: ssl.SSLContext | None = None) -> None:
        self.scheme = "https" if tls is not None else "http"
        self._socket = _listen(host, port)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, int(drain)),
            timeout_keep_alive=75,
            h11_max_incomplete_event_size=64 * 1024,
            backlog=BACKLOG,
        )
        if tls is not None:
            config.load()
            config.ssl = tls
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it answers, as a program on this machine asks."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)  # noqa: S104
        return f"{self.scheme}://{host}:{self.port}"

    async def start(self) -> None:
        """Serve; returns when it listens."""
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise SetupError("the HTTP server ended before it listened")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Take nothing new, let what is under way end, then close. Safe to repeat."""
        if self._task is None:
            self._socket.close()
            return
        self._server.should_exit = True
        await self._task


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `SetupError` naming the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        raise SetupError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    made.setblocking(False)
    return made


def gateway_tls(settings: Settings) -> ssl.SSLContext | None:
    """How the gateway answers by HTTPS: not, without a certificate. Reads files. Raises `SetupError`."""
    if settings.gateway_tls_cert is None:
        for variable, value in (("KEY", settings.gateway_tls_key), ("CLIENT_CA", settings.gateway_tls_client_ca)):
            if value is not None:
                raise SetupError(f"PERDURE_GATEWAY_TLS_{variable} is set without PERDURE_GATEWAY_TLS_CERT")
        return None
    return server_context(
        settings.gateway_tls_cert, settings.gateway_tls_key, settings.gateway_tls_client_ca, "PERDURE_GATEWAY_TLS"
    )
