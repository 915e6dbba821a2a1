"""The agents, and their tools, as tools of an MCP server: a call is a durable run. Imported by the first request for
it alone.
"""

from __future__ import annotations

from typing import Any, Final

from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from perdure.edge.about import About, Descriptions
from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.gate import origins
from perdure.edge.mcp_call import BETWEEN, Call
from perdure.edge.problems import unexpected
from perdure.edge.public import hosts
from perdure.errors import ApiError, InvalidRequest

PAGE: Final = 100  # tools; a page ends with the last one of an agent
AT_A_TIME: Final = 20  # agents that are asked what they are
INSTRUCTIONS: Final = (
    "Each tool is an agent, or a tool of one: AGENT__TOOL. A call is a durable run: it is not lost when a process or a "
    "machine is. Give an agent session_id to go on with a conversation; the result's _meta says perdure.run_id and "
    "perdure.session_id."
)
INPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "description": "What to tell the agent. Give this or task."},
        "task": {"description": "The task as JSON, for agents that take more than a text. Give this or prompt."},
        "session_id": {"type": "string", "description": "Go on with this conversation."},
        "run_id": {
            "type": "string",
            "description": "An id for the run, of your choice. The same id and task again are the same run, and its "
            "result: so ask again when an answer was lost.",
        },
        "wait": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "Answer after so many seconds even if the run has not ended; it goes on, and the same call "
            "with its run_id gives the result.",
        },
    },
    "additionalProperties": False,
}


def manager(door: Door, *, version: str) -> StreamableHTTPSessionManager:
    """What answers the requests; its `run` has to be under way."""
    agents = _Agents(door)
    return StreamableHTTPSessionManager(
        Server(
            "perdure",
            version=version,
            instructions=INSTRUCTIONS,
            on_list_tools=agents.list,
            on_call_tool=agents.call,
            get_tool_input_schema=lambda _: INPUT,
        ),
        stateless=True,
        security_settings=_security(door),
        max_request_body_size=2**62,  # the guard's limit counts
    )


class _Agents:
    """The agents that a caller may use, as tools."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._about = Descriptions(door.nats)

    async def list(self, ctx: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        after = (params and params.cursor) or ""
        names = [each["agent"] for each in await self._door.agents(_caller(ctx)) if each["agent"] > after]
        tools: list[Tool] = []
        told = 0
        for at in range(0, len(names), AT_A_TIME):
            some = names[at : at + AT_A_TIME]
            said = await self._about.about(some)
            for name in some:
                if len(tools) >= PAGE:
                    return ListToolsResult(tools=tools, next_cursor=names[told - 1])
                tools += _tools(name, said[name])
                told += 1
        return ListToolsResult(tools=tools)

    async def call(self, ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        caller = _caller(ctx)
        try:
            said, meta = params.arguments or {}, ctx.meta or {}
            call = await Call.prepared(self._door, self._about, caller, params.name, said, meta)
            return await call.answer(ctx)
        except ApiError as error:
            return _failed(error)
        except Exception as error:  # noqa: BLE001 -- the library would tell the caller nothing, and us neither
            return _failed(unexpected(error))


def _tools(name: str, about: About) -> list[Tool]:
    """An agent as a tool, and its own."""
    hints = ToolAnnotations(open_world_hint=True)
    said = about.description or f"The agent {name}."
    own = [
        Tool(
            name=f"{name}{BETWEEN}{each['name']}",
            description=each["description"],
            input_schema=each["parameters"],
            annotations=hints,
        )
        for each in about.tools
    ]
    return [Tool(name=name, description=said, input_schema=INPUT, annotations=hints), *own]


def _caller(ctx: Any) -> Caller:
    caller = ctx.request.scope["state"]["caller"]
    if not isinstance(caller, Caller):
        raise InvalidRequest("there is no caller")
    return caller


def _failed(error: ApiError) -> CallToolResult:
    said = {"code": error.code, "message": error.message, **error.details}
    return CallToolResult(
        content=[TextContent(text=f"{error.code}: {error.message}")], structured_content=said, is_error=True
    )


def _security(door: Door) -> TransportSecuritySettings:
    """Which hosts and origins are answered. Outside loopback any host is, unless one is named: a key is needed there,
    which a page of another site does not have.
    """
    known = hosts(door.settings)
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=known is not None,
        allowed_hosts=list(known or ()),
        allowed_origins=[
            *origins(door.settings),
            *(f"{scheme}://{host}" for host in known or () for scheme in ("http", "https")),
        ],
    )
