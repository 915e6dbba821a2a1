"""What every request passes first: an id, a bound on how many and how large, and the question who calls."""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.edge.door import Door
from perdure.edge.metrics import Load
from perdure.edge.problems import answer, unexpected
from perdure.errors import ApiError, RateLimited, TooLarge, Unavailable
from perdure.observe import tracing
from perdure.store.actor import actor

PUBLIC: Final = frozenset({"/healthz", "/readyz"})
UNTRACED: Final = PUBLIC | {"/metrics"}
SERVER_ERROR: Final = 500
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ROOM: Final = 64 * 1024  # beside the task: the other fields of a body

if TYPE_CHECKING:
    from perdure.observe.otel import Traces

log = structlog.get_logger(__name__)


class Guard:
    """ASGI middleware around the whole app; nothing behind it is reached without a caller."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._largest = door.settings.max_payload + _ROOM

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            else:
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid4().hex
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        answered = _Answered(send, request_id)
        began = time.perf_counter()
        load = self._door.load
        load.requests += 1
        bounded = _Bounded(receive, self._largest, load)
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                if self._door.traces is None or scope["path"] in UNTRACED:
                    await self._through(scope, headers, bounded, answered)
                else:
                    await self._traced(self._door.traces, scope, headers, bounded, answered)
        finally:
            load.requests -= 1
            load.bytes -= bounded.taken
            route = getattr(scope.get("route"), "path", "") or "none"
            seconds = (answered.at or time.perf_counter()) - began
            self._door.metrics.answered(scope["method"], route, answered.status, seconds)

    async def _traced(self, traces: Traces, scope: Scope, headers: Headers, receive: _Bounded, send: _Answered) -> None:
        """The same in a span, which goes on with the caller's trace."""
        said = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with traces.served(scope["method"], tracing.told(headers), said) as span:
            try:
                await self._through(scope, headers, receive, send)
            finally:
                route = getattr(scope.get("route"), "path", "") or "none"
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", send.status)
                if send.status >= SERVER_ERROR:
                    traces.fails(span, str(send.status))

    async def _through(self, scope: Scope, headers: Headers, receive: _Bounded, send: _Answered) -> None:
        try:
            path = scope["path"]
            if path not in PUBLIC:
                self._shed()
                receive.check(headers)
                ticket = None
                if scope["method"] == "GET" and (path.endswith("/events") or path.startswith("/events/")):
                    ticket = QueryParams(scope["query_string"]).get("ticket")
                caller = scope["state"]["caller"] = await self._door.gate.enter(scope["method"], headers, ticket)
                actor.set(caller.name)
            await self._app(scope, receive, send)
        except Exception as error:
            if send.at is not None:
                log.warning("an answer broke off", action="http.broken_off", path=scope["path"], exc_info=error)
                raise
            said = error if isinstance(error, ApiError) else unexpected(error)
            await answer(Request(scope), said)(scope, receive, send)

    def _shed(self) -> None:
        load = self._door.load
        if self._door.stopping.is_set():
            raise Unavailable("this gateway is stopping; ask again")
        if load.requests > load.most_requests:
            load.shed += 1
            raise RateLimited(f"{load.most_requests} requests are under way; ask again later", retry_after=1.0)


class _Answered:
    """`send` that notes the status and when the answer began, and puts the request's id on it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._id = (b"x-request-id", request_id.encode())
        self.status = 0
        self.at: float | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.at = time.perf_counter()
            message["headers"] = [*message.get("headers", ()), self._id, (b"x-content-type-options", b"nosniff")]
        await self._send(message)


class _Bounded:
    """`receive` that stops at the largest body, and when all bodies together take too much memory."""

    def __init__(self, receive: Receive, largest: int, load: Load) -> None:
        self._receive = receive
        self._largest = largest
        self._load = load
        self.taken = 0

    def check(self, headers: Headers) -> None:
        """Refuse by the announced length, before anything is read."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._largest:
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.taken += size
            self._load.bytes += size
            if self.taken > self._largest:
                raise self._too_large()
            if self._load.bytes > self._load.most_bytes:
                self._load.shed += 1
                raise RateLimited("the bodies of other requests fill the memory; ask again later", retry_after=1.0)
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is over the limit of {self._largest} bytes (PERDURE_MAX_PAYLOAD)")
