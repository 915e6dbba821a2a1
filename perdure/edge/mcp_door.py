"""`/mcp`: agents as tools of the Model Context Protocol, over streamable HTTP without sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.types import Receive, Scope, Send

from perdure.agent.registry import live_agents
from perdure.client.types import TERMINAL_EVENTS
from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.openai_common import agent_of, output_text, start
from perdure.errors import ApiError, InvalidRequest, RunFailed, Unavailable
from perdure.subjects import RUN_ID

if TYPE_CHECKING:
    import mcp_types as types
    from mcp.server.context import ServerRequestContext
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

PATIENCE: Final = 3600.0  # seconds that a call waits for its run, which goes on after
TOLD: Final = frozenset({"step.completed", "tool.started", "tool.progress", "approval.requested"})
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "task": {"type": "string", "minLength": 1, "description": "What the agent is to do."},
        "session_id": {"type": "string", "description": "Go on with this conversation."},
    },
    "required": ["task"],
    "additionalProperties": False,
}


class McpDoor:
    """The ASGI app behind `/mcp`. The protocol's library is loaded at the first request."""

    def __init__(self, door: Door, version: str) -> None:
        self._door = door
        self._version = version
        self._manager: asyncio.Task[StreamableHTTPSessionManager] | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; its caller is the one that the guard has let in."""
        if self._manager is None:
            self._manager = asyncio.get_running_loop().create_task(self._open())
        manager = await asyncio.shield(self._manager)
        await manager.handle_request(scope, receive, send)

    async def _open(self) -> StreamableHTTPSessionManager:
        server = await asyncio.to_thread(import_module, "mcp.server.lowlevel.server")
        managers = await asyncio.to_thread(import_module, "mcp.server.streamable_http_manager")
        made = server.Server("perdure", version=self._version, on_list_tools=self._list, on_call_tool=self._call)
        # Without sessions any gateway answers any request. The guard has checked host, origin and size.
        manager = managers.StreamableHTTPSessionManager(
            made, stateless=True, max_request_body_size=self._door.settings.max_payload
        )
        opened = asyncio.Event()
        self._keeping = asyncio.get_running_loop().create_task(self._keep(manager, opened))
        await opened.wait()
        return cast("StreamableHTTPSessionManager", manager)

    async def _keep(self, manager: Any, opened: asyncio.Event) -> None:
        async with manager.run():
            opened.set()
            await self._door.stopping.wait()

    async def _list(self, ctx: ServerRequestContext[Any], _params: Any) -> types.ListToolsResult:
        kinds = import_module("mcp_types")
        caller, door = _caller(ctx), self._door
        tools = [
            kinds.Tool(name=each["agent"], description=f"Give agent {each['agent']} a task.", input_schema=SCHEMA)
            for each in await live_agents(door.pool)
            if caller.uses(each["agent"]) and door.only in (None, each["agent"])
        ]
        return cast("types.ListToolsResult", kinds.ListToolsResult(tools=tools))

    async def _call(self, ctx: ServerRequestContext[Any], params: Any) -> types.CallToolResult:
        kinds = import_module("mcp_types")
        try:
            run = await self._run(ctx, params.name, params.arguments or {})
            output, failed = run.get("output"), False
        except ApiError as error:
            output, failed = f"{error.code}: {error.message}", True
        text = kinds.TextContent(type="text", text=output_text(output))
        structured = output if isinstance(output, dict) else None
        return cast(
            "types.CallToolResult",
            kinds.CallToolResult(content=[text], structured_content=structured, is_error=failed),
        )

    async def _run(self, ctx: ServerRequestContext[Any], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        caller, door = _caller(ctx), self._door
        caller.need("operator")
        agent = await agent_of(door, caller, name)
        task, session = arguments.get("task"), arguments.get("session_id")
        if not isinstance(task, str) or not task.strip():
            raise InvalidRequest("argument 'task': say what the agent is to do")
        if session is not None:
            if not isinstance(session, str) or not RUN_ID.fullmatch(session):
                raise InvalidRequest("argument 'session_id': it must match [A-Za-z0-9_-]{1,128}")
            session = caller.own(session, field="session_id")
        run, _ = await start(door, caller, agent, task, "", session=session, key=None)
        try:
            async with asyncio.timeout(PATIENCE), _telling(ctx, door, run.run_id):
                ended = await run.ended()
        except TimeoutError:
            raise Unavailable(f"run {run.run_id} has no answer yet; it goes on") from None
        if ended["status"] != "completed":
            raise RunFailed(run.run_id, ended["status"], ended.get("error"))
        return ended


@asynccontextmanager
async def _telling(ctx: ServerRequestContext[Any], door: Door, run_id: str) -> AsyncIterator[None]:
    """Within: what happens to the run is told as progress, until its end is."""

    async def tell() -> None:
        count = 0
        async with aclosing(door.client.run(run_id).events()) as events:
            async for event in events:
                if event["type"] in TOLD:
                    count += 1
                    data = event["data"]
                    what = data.get("text") or data.get("tool") or data.get("name") or ""
                    await ctx.session.report_progress(float(count), None, f"{event['type']} {what}".strip())
                elif event["type"] in TERMINAL_EVENTS:
                    return

    telling = asyncio.create_task(tell())
    try:
        yield
        await asyncio.wait([telling], timeout=1.0)  # its last words
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


def _caller(ctx: ServerRequestContext[Any]) -> Caller:
    request = ctx.request
    caller = request.scope["state"]["caller"] if request is not None else None
    assert isinstance(caller, Caller)  # noqa: S101 -- set by the guard before any route
    return caller
