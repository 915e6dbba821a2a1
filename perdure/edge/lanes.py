"""The two requests that come most, read without the framework: a start that says what most say, and a run's events
from the first on. FastAPI's way to a route and through its parameters costs more than all that they need beside it.
Whatever says more than that, and all that is wrong, goes the usual way to the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.routes_events import events_of
from perdure.edge.routes_starts import start
from perdure.messages import RunStart
from perdure.subjects import RUN_ID

STARTS: Final = ("/agents/", "/run")
EVENTS: Final = ("/runs/", "/events")
SINGLE: Final = "/run"
_SAYS_MORE: Final = frozenset({b"idempotency-key", b"prefer", b"last-event-id"})
_JSON: Final = (b"content-type", b"application/json")


class Lanes:
    """ASGI middleware behind the guard; `routes` are those of the app, under whose paths requests are counted."""

    def __init__(self, app: ASGIApp, door: Door, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._door = door
        paths = {each.path: each for each in routes if isinstance(each, Route)}
        self._start = paths["/agents/{name}/run"]
        self._single = paths.get(SINGLE) if door.only is not None else None
        self._events = paths["/runs/{run_id}/events"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and not scope["query_string"]:
            path, method = scope["path"], scope["method"]
            if method == "POST" and (path == SINGLE or path.endswith(STARTS[1])):
                await self._starts(path, scope, receive, send)
                return
            run_id = _between(path, *EVENTS) if method == "GET" else None
            if run_id and RUN_ID.fullmatch(run_id) and not _says_more(scope):
                scope["route"] = self._events
                response = await events_of(self._door, _caller(scope), run_id)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _starts(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        name = _between(path, *STARTS)
        route = self._start if name else self._single if path == SINGLE else None
        if route is None or _JSON not in scope["headers"] or _says_more(scope):
            await self._app(scope, receive, send)
            return
        caller = _caller(scope)
        caller.need("operator")
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        said = _read(body)
        if said is None:
            await self._app(scope, _again(body, receive), send)
            return
        scope["route"] = route
        response = await start(self._door, caller, name, said)
        await response(scope, receive, send)


def _says_more(scope: Scope) -> bool:
    return any(name in _SAYS_MORE for name, _ in scope["headers"])


def _caller(scope: Scope) -> Caller:
    caller = scope["state"]["caller"]
    assert isinstance(caller, Caller)  # noqa: S101 -- set by the guard before this
    return caller


def _between(path: str, before: str, after: str) -> str | None:
    """The one segment of a path that stands between these."""
    if path.startswith(before) and path.endswith(after):
        found = path[len(before) : -len(after)]
        if found and "/" not in found:
            return found
    return None


def _read(body: bytes) -> RunStart | None:
    try:
        return RunStart.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body once more that was read already."""
    left: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def once_more() -> Message:
        return left.pop() if left else await receive()

    return once_more
