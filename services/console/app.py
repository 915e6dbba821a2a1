"""The page's files and the way to the gateway. Nothing is rendered here: the page reads the API and draws itself."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.edge.gate import check_local
from perdure.errors import Forbidden
from services.console.relay import Relay

PAGE: Final = Path(__file__).parent / "page"
# Scripts, styles and data come from this origin alone, and no other site may frame the page.
_POLICY: Final = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
_SAID: Final = {
    "Content-Security-Policy": f"{_POLICY}base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(relay: Relay, *, local: bool) -> ASGIApp:
    """The app. `local`: it listens on loopback, so that what other sites make a browser send is refused."""

    async def api(request: Request) -> Response:
        # Beyond loopback others ask: a gateway that is open to its own machine must not take them for that.
        via = None if local else (request.client.host if request.client else "unknown")
        return await relay.pass_on(request, via=via)

    mimetypes.init()  # reads the system's tables, which the first file would else do in the event loop
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/healthz", _alive),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/api/{path:path}", api, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ]
    )
    return _Headers(app, local=local)


async def _page(_request: Request) -> Response:
    return FileResponse(PAGE / "index.html")


async def _alive(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Headers:
    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SAID.items():
                    headers[name] = value
            await send(message)

        if self._local:
            try:
                check_local(scope["method"], Headers(scope=scope))
            except Forbidden as error:
                said = JSONResponse({"status": 403, "code": error.code, "detail": error.message}, 403)
                await said(scope, receive, say)
                return
        await self._app(scope, receive, say)
