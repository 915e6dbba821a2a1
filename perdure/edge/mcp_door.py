"""The door of MCP (streamable HTTP). Nothing of a call is kept between requests, so that any gateway answers any of
them: where the protocol has sessions (before 2026-07-28) none are given out.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from starlette.types import Receive, Scope, Send

from perdure.edge.door import Door


class McpDoor:
    """ASGI app. The library is loaded, and what it wants to run beside the requests started, by the first of them."""

    path = "/mcp"

    def __init__(self, door: Door, version: str) -> None:
        self._door = door
        self._version = version
        self._starting = asyncio.Lock()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._manager: Any = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; its caller is the one that the guard has let in."""
        scope["route"] = self  # what it is counted under
        self._under_way += 1
        self._idle.clear()
        try:
            manager = await self._started()
            await manager.handle_request(scope, receive, send)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _started(self) -> Any:
        async with self._starting:
            if self._manager is None:
                library = await asyncio.to_thread(import_module, "perdure.edge.mcp_server")
                manager = library.manager(self._door, version=self._version)
                ready = asyncio.Event()
                self._running = asyncio.create_task(self._run(manager, ready), name="mcp")
                await ready.wait()
                self._manager = manager
        return self._manager

    async def _run(self, manager: Any, ready: asyncio.Event) -> None:
        async with manager.run():
            ready.set()
            await self._door.stopping.wait()
            await self._idle.wait()
