"""The door of A2A: agent cards, and JSON-RPC endpoints for each agent and for all. A task is a run, a context a
conversation.

Nothing of a task is kept here: any gateway answers for any of them.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from perdure.agent.registry import alive
from perdure.edge.about import Descriptions
from perdure.edge.door import Door
from perdure.edge.public import base_url
from perdure.edge.replies import ERRORS, named, reply
from perdure.edge.roles import caller_of
from perdure.errors import NotFound

CARD: Final = "/.well-known/agent-card.json"

_CARD: Final[dict[str, Any]] = {
    "200": {"description": "The card.", "content": {"application/json": {"schema": {"type": "object"}}}},
    **{str(status): said for status, said in ERRORS.items()},
}
_AGENT: Final = {"name": "agent", "in": "path", "required": True, "schema": {"type": "string"}, "example": "assistant"}
_CALL: Final[dict[str, Any]] = {
    "tags": ["a2a"],
    "description": "JSON-RPC of A2A 1.0 (with the header `A2A-Version: 1.0`) or 0.3; its specification has the "
    "methods. What a method refuses is an answer with `error`, whose message begins with our code.",
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "jsonrpc": {"const": "2.0"},
                        "id": {"type": ["string", "integer"]},
                        "method": {"type": "string", "examples": ["SendMessage", "GetTask", "message/send"]},
                        "params": {"type": "object"},
                    },
                    "required": ["jsonrpc", "method"],
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "The answer; events of a stream.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        **{str(status): said for status, said in ERRORS.items()},
    },
}
DOCUMENT: Final[dict[str, Any]] = {
    CARD: {"get": {"tags": ["a2a"], "summary": "The card of all agents, or of the one here", "responses": _CARD}},
    f"/a2a/{{agent}}{CARD}": {
        "get": {"tags": ["a2a"], "summary": "An agent's card", "parameters": [_AGENT], "responses": _CARD}
    },
    "/a2a": {"post": {"summary": "Agent2Agent, for the agent that a message names", **_CALL}},
    "/a2a/{agent}": {"post": {"summary": "Agent2Agent", "parameters": [_AGENT], **_CALL}},
}
"""What OpenAPI says of these routes."""


def routes(door: Door, *, version: str) -> list[Route]:
    """The routes of this door."""
    made = _A2A(door, version)
    return [
        _Counted(CARD, made.whole_card, methods=["GET"]),
        _Counted(f"/a2a/{{agent}}{CARD}", made.card, methods=["GET"]),
        _Counted("/a2a/{agent}", made.rpc, methods=["POST"]),
        _Counted("/a2a", made.rpc_of_all, methods=["POST"]),
    ]


class _Counted(Route):
    """A route under whose path its answers are counted."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["route"] = self
        await super().handle(scope, receive, send)


class _A2A:
    """Loads the protocol's library with the first request for it."""

    def __init__(self, door: Door, version: str) -> None:
        self._door = door
        self._version = version
        self._about = Descriptions(door.nats)
        self._library: Any = None
        self._dispatcher: Any = None

    async def rpc(self, request: Request) -> Response:
        """A message to an agent, or a question about a task."""
        return await self._answer(request, self._door.agent(caller_of(request), named(request.path_params["agent"])))

    async def rpc_of_all(self, request: Request) -> Response:
        """The same for every agent that the caller may use: a message names one in its metadata."""
        return await self._answer(request, None)

    async def _answer(self, request: Request, agent: str | None) -> Response:
        library = await self._loaded()
        request.state.agent = agent
        await request.body()  # here, where the guard answers for what is too large
        answer: Response = await library.answer(self._dispatcher, request)
        return answer

    async def card(self, request: Request) -> Response:
        """The card of one agent."""
        agent = self._door.agent(caller_of(request), named(request.path_params["agent"]))
        if not await alive(self._door.pool, [agent]):
            raise NotFound(f"no process of an agent {agent!r} is up")
        return await self._card(request, agent)

    async def whole_card(self, request: Request) -> Response:
        """The card of the platform, whose skills are its agents; of the one agent where there is no other."""
        names = [each["agent"] for each in await self._door.agents(caller_of(request))]
        if not names:
            raise NotFound("no process of any agent is up")
        if len(names) == 1:
            return await self._card(request, names[0])
        library = await self._loaded()
        skills = {name: said or f"The agent {name}." for name, said in (await self._about.of(names)).items()}
        url = f"{base_url(self._door.settings, request)}/a2a"
        return reply(library.platform_card(skills, url, self._version))

    async def _card(self, request: Request, agent: str) -> Response:
        library = await self._loaded()
        said = (await self._about.of([agent]))[agent]
        url = f"{base_url(self._door.settings, request)}/a2a/{agent}"
        return reply(library.card(agent, said or f"The agent {agent}.", url, self._version))

    async def _loaded(self) -> Any:
        if self._library is None:
            library = await asyncio.to_thread(import_module, "perdure.edge.a2a_server")
            self._dispatcher = library.dispatcher(self._door)
            self._library = library
        return self._library
