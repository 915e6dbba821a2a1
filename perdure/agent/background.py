"""Background tools: the model goes on at once, the work is a durable child run, its result joins the conversation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import orjson
import structlog

from perdure.agent.kept import call_spot, sealed
from perdure.agent.schema import ToolArgumentsError
from perdure.agent.tool_calls import ToolResult, content_of, failed, failed_with, run_function
from perdure.agent.tools import Tool
from perdure.agent.users import USER, user_of, with_user
from perdure.engine import Context, Retry, StepContext
from perdure.engine.codec import short_hash
from perdure.errors import PermanentError
from perdure.llm.types import ToolRequest
from perdure.store.postgres import Connection
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent

_SQL = load_queries("sessions.sql")

Note: TypeAlias = Callable[[float, str], Awaitable[None]]

log = structlog.get_logger()


def workflow_name(tool: str) -> str:
    """The workflow under which a background tool runs."""
    return f"tool:{tool}"


async def schedule(agent: DurableAgent, ctx: Context, tool: Tool, call: ToolRequest, session: str) -> ToolResult:
    """Start the work and tell the model so."""
    try:
        tool.bind(call.arguments)
    except ToolArgumentsError as error:
        return failed("InvalidArguments", str(error))
    child = f"{ctx.run_id[:90]}-{short_hash(ctx.run_id, call.id)}"

    async def note(connection: Connection, session: str, call_id: str, child: str, name: str, arguments: str) -> None:
        kept = await sealed(connection, arguments, call_spot("arguments", session, call_id))
        await connection.execute(_SQL["schedule_result"], agent.name, session, call_id, child, name, kept)

    await ctx.transaction(f"schedule:{tool.name}", note, session, call.id, child, tool.name, call.arguments)
    task = {"call_id": call.id, "session_id": session, "arguments": call.arguments, "parent": ctx.run_id}
    await ctx.start(agent.name, with_user(task, user_of(ctx)), workflow=workflow_name(tool.name), run_id=child)
    return ToolResult(orjson.dumps({"status": "scheduled", "call_id": call.id}).decode())


def background_workflow(agent: DurableAgent, tool: Tool) -> Callable[[Context, Any], Awaitable[Any]]:
    """The workflow of a background tool: do the work, put its end into the conversation, wake the agent if asked."""

    async def background(ctx: Context, task: Mapping[str, Any]) -> Any:
        raised: Exception | None = None
        try:
            value = await _work(ctx, tool, task, _noter(agent, task))
            result = content_of(value, tool.name)
        except Exception as error:  # noqa: BLE001  (whatever a tool raises is told to the model, then ends this run)
            raised, value, result = error, None, failed_with(error)
        await _deliver(agent, ctx, tool, task, result)
        if raised is not None:
            raise raised
        if result.error:
            raise PermanentError(result.content)
        return value

    return background


class WorkContext(Context):
    """The context of a background tool: its progress also stands where the conversation sees it."""

    __slots__ = ("_note",)

    def __init__(self, ctx: Context, note: Note) -> None:
        super().__init__(ctx._execution)  # noqa: SLF001  (the same run, seen with one more duty)
        self._note = note

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell watchers, the model and the user how far the work is. Best effort, not journaled."""
        await super().progress(fraction, text)
        if not self._execution.replaying:
            await self._note(fraction, text)


class WorkStep(StepContext):
    """The same for a background tool that is one step."""

    __slots__ = ("_note",)

    def __init__(self, step: StepContext, note: Note) -> None:
        super().__init__(step._execution, step.step_id, step.attempt)  # noqa: SLF001  (the same step)
        self._note = note

    async def progress(self, fraction: float, text: str = "") -> None:
        """Tell watchers, the model and the user how far the work is. Best effort."""
        await super().progress(fraction, text)
        await self._note(fraction, text)


def _noter(agent: DurableAgent, task: Mapping[str, Any]) -> Note:
    async def note(fraction: float, text: str) -> None:
        said = f"{fraction:.0%} {text}".strip().replace("\x00", "")[:500]
        key = (agent.name, task["session_id"], task["call_id"])
        kept = await sealed(agent.resources.pool, said, call_spot("progress", task["session_id"], task["call_id"]))
        try:
            await agent.resources.pool.execute(_SQL["keep_progress"], *key, kept)
        except (asyncpg.PostgresError, OSError) as error:
            log.debug("progress not kept", action="tool.progress_lost", error=type(error).__name__)

    return note


async def _work(ctx: Context, tool: Tool, task: Mapping[str, Any], note: Note) -> Any:
    arguments = task["arguments"]
    kwargs = tool.bind(arguments)
    if tool.wants_context:
        try:
            return await tool.function(**kwargs, **tool.injections(ctx=WorkContext(ctx, note)))
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            raise PermanentError(f"tool {tool.name!r} raised {type(error).__name__}: {error}") from error
    timeout = tool.timeout

    async def work(arguments: str, step: StepContext) -> Any:  # noqa: ARG001  (part of the step's identity)
        return await run_function(tool, {**kwargs, **tool.injections(step=WorkStep(step, note))}, timeout)

    return await ctx.step(tool.name, work, arguments, retry=tool.retry or Retry())


async def _deliver(agent: DurableAgent, ctx: Context, tool: Tool, task: Mapping[str, Any], result: ToolResult) -> None:
    call_id, session = task["call_id"], task["session_id"]
    status = "failed" if result.error else "completed"

    async def deliver(connection: Connection, session: str, call_id: str, status: str, content: str) -> None:
        kept = await sealed(connection, content, call_spot("result", session, call_id))
        await connection.execute(_SQL["deliver_result"], agent.name, session, call_id, status, kept)

    await ctx.transaction("deliver", deliver, session, call_id, status, result.content)
    said = {"tool": tool.name, "call_id": call_id, "session_id": session, "status": status, "result": result.content}
    await ctx.emit({**said, "parent": task.get("parent")}, type="tool.completed")
    if tool.wake:
        await ctx.start(
            agent.name, with_user({"wake": call_id}, task.get(USER)), session_id=session, run_id=f"{ctx.run_id}-wake"
        )
