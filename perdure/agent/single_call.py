"""One tool of an agent, called without its model: what clients of MCP do. It is a run like any other, and the call is
journaled, retried, limited, bound by hooks and approved as one that the model makes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from perdure.agent.calling import decided
from perdure.agent.settings import AgentSettings
from perdure.agent.tools import Tool
from perdure.engine import Context
from perdure.engine.codec import encode, short_hash
from perdure.errors import InvalidRequest, PermanentError
from perdure.llm.types import ToolRequest

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent

LONGEST: Final = 100_000
"""Bytes of what an agent says of its tools; the rest of them is not offered."""


def offered(agent: DurableAgent, live: AgentSettings) -> Mapping[str, Tool]:
    """The tools that may be called so: those that the model may see and that do not end its turn."""
    names = agent.toolbox if live.tools_enabled is None else live.tools_enabled
    if live.mcp_tools is not None:
        names = [name for name in live.mcp_tools if name in names]
    return {name: agent.toolbox[name] for name in names if name in agent.toolbox and not agent.toolbox[name].handoff}


def described(agent: DurableAgent) -> list[dict[str, Any]]:
    """What stands in discovery for those who look for tools: `name`, `description` and `parameters` of each."""
    found, room = [], LONGEST
    for tool in offered(agent, agent.live(agent.config)).values():
        said = tool.spec()["function"]
        room -= len(orjson.dumps(said))
        if room < 0:
            break
        found.append(said)
    return found


class _Alone:
    """What a call needs of a turn, without one."""

    detaches = False  # whoever calls waits for the result, of a background tool, too

    def __init__(self, agent: DurableAgent, ctx: Context) -> None:
        self.agent = agent
        self.ctx = ctx
        self.session = ctx.session_id or ctx.run_id

    def tools(self, live: AgentSettings) -> Mapping[str, Tool]:
        """The tools that may be called."""
        return offered(self.agent, live)


def call_workflow(agent: DurableAgent) -> Callable[[Context, Any], Awaitable[Any]]:
    """The workflow `CALL_TOOL`: its task is `{"tool": name, "arguments": object}`, its output what the tool returns."""

    async def call_tool(ctx: Context, task: Any) -> Any:
        name, arguments = _read(task)
        call = ToolRequest(f"call_{short_hash(ctx.run_id, name)}", name, encode(arguments, what="the arguments"))
        result = await decided(_Alone(agent, ctx), agent.live(ctx.config), call)
        value = _value(result.content)
        if not result.error:
            return value
        error = value["error"] if isinstance(value, dict) else {"type": "Error", "message": result.content}
        raise PermanentError(f"{error['type']}: {error['message']}")

    return call_tool


def _read(task: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(task, Mapping) and isinstance(task.get("tool"), str):
        arguments = task.get("arguments", {})
        if isinstance(arguments, dict):
            return task["tool"], arguments
    raise InvalidRequest('the task of call-tool is {"tool": name, "arguments": object}')


def _value(content: str) -> Any:
    """What a model reads as JSON, as JSON; a text as it is."""
    if content[:1] in ("{", "["):
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            return content
    return content
