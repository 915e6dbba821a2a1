"""The app: its routes, its errors, its OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Route

from perdure.edge import (
    a2a_door,
    docs_page,
    examples,
    openai_chat,
    openai_responses,
    problems,
    routes_agui,
    routes_chat,
    routes_config,
    routes_events,
    routes_operation,
    routes_runs,
    routes_schedules,
    routes_starts,
    routes_steering,
)
from perdure.edge.door import Door
from perdure.edge.gate import origins
from perdure.edge.guard import PUBLIC, Guard
from perdure.edge.lanes import Lanes
from perdure.edge.mcp_door import McpDoor

DESCRIPTION = """\
Start, follow and steer runs, talk with agents, change their configuration. Lists take `limit` and `cursor` and return
`next_cursor`. Errors are problem details (RFC 9457) with a `code` that is the same on NATS. Every answer has
`X-Request-Id`. `/mcp` is not in this document: what it takes and gives is the transport of MCP, which its
specification describes and which no client reads from here."""
SCHEME: Final = {"type": "http", "scheme": "bearer", "description": "An API key, or a JWT."}
ALLOWED: Final = (
    *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"),
    *("Mcp-Protocol-Version", "Mcp-Session-Id", "Mcp-Method", "Mcp-Name", "A2A-Version"),
)


def create_app(door: Door, *, version: str = "0") -> FastAPI:
    """The app over a door. Every route but health is behind the guard, which lets callers in."""
    app = FastAPI(
        title="Perdure" if door.only is None else f"Perdure: {door.only}",
        version=version,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    app.state.door = door
    problems.install(app)
    # Routes stand in one list: a router inside another one is looked through anew for each request.
    routes = app.router.routes
    if door.only is not None:
        routes.extend(routes_starts.single.routes)
    native = (
        *(routes_starts, routes_runs, routes_steering, routes_events, routes_agui, routes_chat),
        *(routes_schedules, routes_config, routes_operation),
    )
    for each in (*native, openai_chat, openai_responses):
        routes.extend(each.router.routes)
    routes.append(Route("/docs", _docs, methods=["GET"], name="docs"))
    routes.append(Route("/mcp", McpDoor(door, version), methods=["GET", "POST", "DELETE"], name="mcp"))
    routes.extend(a2a_door.routes(door, version=version))
    app.add_middleware(Lanes, door=door, routes=routes)
    app.add_middleware(Guard, door=door)
    if allowed := origins(door.settings):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(allowed),
            allow_methods=["*"],
            allow_headers=ALLOWED,
            expose_headers=["X-Request-Id", "Retry-After", "Preference-Applied", "ETag"],
        )
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]  # the way FastAPI documents
    return app


async def _docs(request: Request) -> Response:
    return HTMLResponse(docs_page.page(request.app.openapi()), headers=docs_page.HEADERS)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        made["components"]["securitySchemes"] = {"key": SCHEME}
        made["paths"] |= {path: {**operations} for path, operations in a2a_door.DOCUMENT.items()}
        examples.put(schemas)
        schemas["Problem"] = problems.Problem.model_json_schema()
        schemas["OpenAIProblem"] = problems.OPENAI_SCHEMA
        for path, operations in made["paths"].items():
            if path not in PUBLIC:
                made["paths"][path] = {name: {**each, "security": [{"key": []}]} for name, each in operations.items()}
        app.openapi_schema = made
    return app.openapi_schema
