"""The tool calls of a turn: hooks and people are asked, the tool is run, and whatever happens is told to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import orjson
import structlog

from perdure.agent.approvals import wait_for_person
from perdure.agent.background import schedule
from perdure.agent.hooks import Moment, Verdict
from perdure.agent.schema import ToolArgumentsError
from perdure.agent.settings import AgentSettings
from perdure.agent.spans import tool_span
from perdure.agent.tool_calls import ToolResult, content_of, failed, failed_with, run_function
from perdure.agent.tools import Tool
from perdure.engine import Context, Retry, StepContext
from perdure.engine.codec import short_hash
from perdure.errors import ControlFlow, PermanentError, RetryableError, StepFailed
from perdure.llm.types import ModelReply, ToolRequest
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent
    from perdure.agent.turn import Turn

TOOL_TIMEOUT: Final = 120.0
TOOL_ATTEMPTS: Final = 3
MOST_CALLS: Final = 64
"""Tool calls of one model answer that are run; the others are told to come again."""

_SQL = load_queries("sessions.sql")
log = structlog.get_logger()


async def run_calls(
    turn: Turn, live: AgentSettings, reply: ModelReply, iteration: int
) -> tuple[list[ToolRequest], list[ToolResult]]:
    """Every call of one answer, with ids of our own: some models count theirs from 0 in each answer."""
    calls = [
        ToolRequest(f"call_{short_hash(turn.ctx.run_id, str(iteration), str(at))}", call.name, call.arguments)
        for at, call in enumerate(reply.tool_calls)
    ]
    taken = calls[:MOST_CALLS]
    if turn.agent.parallel_tools and len(taken) > 1:
        results: list[ToolResult] = await turn.ctx.gather(*(decided(turn, live, call) for call in taken))
    else:
        results = [await decided(turn, live, call) for call in taken]
    results += [failed("TooMany", f"at most {MOST_CALLS} calls at a time")] * (len(calls) - len(taken))
    return calls, results


class Calling(Protocol):
    """What a call needs of the turn in which it is made. `detaches`: a background tool is only scheduled."""

    agent: DurableAgent
    ctx: Context
    session: str
    detaches: bool

    def tools(self, live: AgentSettings) -> Mapping[str, Tool]:
        """The tools that may be called."""
        ...


async def decided(turn: Calling, live: AgentSettings, call: ToolRequest) -> ToolResult:
    """The outcome of one call, after hooks and people have said what becomes of it."""
    tool = turn.tools(live).get(call.name)
    if tool is None:
        return await in_step(turn, live, None, call)
    verdict = await _verdict(turn, call) if turn.agent.hooks.decides_tools else Verdict()
    if verdict.kind == "deny":
        return failed("Denied", verdict.reason)
    note = ""
    if verdict.kind == "change":
        call, note = replace(call, arguments=verdict.arguments), verdict.reason or "a rule changed the arguments"
    if tool.requires_approval or call.name in (live.requires_approval or ()) or verdict.kind == "ask":
        try:
            tool.bind(call.arguments)  # nobody is asked about a call that cannot be made
        except ToolArgumentsError as error:
            return failed("InvalidArguments", str(error))
        decision = await wait_for_person(turn.ctx, turn.agent.name, turn.session, call, live, verdict.reason)
        if decision.status in {"denied", "expired"}:
            what = "a person denied this call" if decision.status == "denied" else "nobody approved this call in time"
            return failed("Denied", f"{what}: {decision.reason}" if decision.reason else what)
        if decision.status == "edited":
            call, note = replace(call, arguments=decision.arguments), "a person changed the arguments"
    result = await _made(turn, live, tool, call)
    if note and not result.error:
        said = {"note": note, "arguments": orjson.loads(call.arguments), "result": result.content}
        return ToolResult(orjson.dumps(said).decode())
    return result


async def _verdict(turn: Calling, call: ToolRequest) -> Verdict:
    at = _moment(turn, call)

    async def decide(call_id: str, name: str, arguments: str) -> Verdict:  # noqa: ARG001  (the step's identity)
        return await turn.agent.hooks.before_tool(at)

    return await turn.ctx.step(f"hook:{call.name}", decide, call.id, call.name, call.arguments)


def _moment(turn: Calling, call: ToolRequest) -> Moment:
    return Moment(turn.agent.name, turn.ctx.run_id, turn.session, call.id, call.name, call.arguments)


async def _made(turn: Calling, live: AgentSettings, tool: Tool, call: ToolRequest) -> ToolResult:
    if tool.background and turn.detaches:
        return await schedule(turn.agent, turn.ctx, tool, call, turn.session)
    if tool.wants_context:
        return await _inline(turn, tool, call)
    return await in_step(turn, live, tool, call)


async def _inline(turn: Calling, tool: Tool, call: ToolRequest) -> ToolResult:
    """A tool with the workflow's context: its own steps and calls are what is journaled."""
    try:
        kwargs = tool.bind(call.arguments)
        return content_of(await tool.function(**kwargs, **tool.injections(ctx=turn.ctx)), tool.name)
    except ToolArgumentsError as error:
        return failed("InvalidArguments", str(error))
    except (ControlFlow, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001  (whatever a tool raises is told to the model)
        return failed_with(error)


async def in_step(turn: Calling, live: AgentSettings, tool: Tool | None, call: ToolRequest) -> ToolResult:
    """One tool call as a journaled step; whatever goes wrong is the result that the model reads."""
    known = sorted(turn.tools(live))
    timeout = (tool.timeout if tool else None) or live.tool_timeout_seconds or TOOL_TIMEOUT

    async def work(call_id: str, name: str, arguments: str, step: StepContext) -> ToolResult:
        with tool_span(turn.agent.resources.traces, name if tool else "unknown", call_id) as told:
            result = await call_tool(call_id, name, arguments, step)
            told(result)
        return result

    async def call_tool(call_id: str, name: str, arguments: str, step: StepContext) -> ToolResult:
        counts = turn.agent.model.counts
        if tool is None:
            counts.called(None, "error")
            return unknown(name, known)
        try:
            kwargs = tool.bind(arguments)
        except ToolArgumentsError as error:
            return failed("InvalidArguments", str(error))
        if not tool.idempotent and not await _first_try(turn, step, call_id):
            return failed("OutcomeUnknown", "the process died during this call: it may have had its effect or not")
        step.delta("tool.started", {"tool": name, "call_id": call_id})
        try:
            value = await run_function(tool, {**kwargs, **tool.injections(step=step)}, timeout)
        except ControlFlow:
            raise
        except Exception as error:
            again = isinstance(error, RetryableError) or (
                tool.retry is not None and not isinstance(error, PermanentError)
            )
            counts.called(name, "retried" if again else "error")
            if again:
                if not tool.idempotent:  # it says itself that it failed: its outcome is known
                    await turn.agent.resources.pool.execute(_SQL["forget_tool"], step.run_id, call_id)
                raise
            log.info("tool failed", action="tool.failed", tool=name, call_id=call_id, exc_info=error)
            result = failed_with(error)
        else:
            counts.called(name, "ok")
            result = content_of(value, name)
        result = replace(result, content=await turn.agent.hooks.after_tool(_moment(turn, call), result.content))
        step.delta("tool.completed", {"tool": name, "call_id": call_id, "error": result.error})
        return result

    retry = tool.retry if tool is not None else None
    try:
        return await turn.ctx.step(
            f"tool:{call.name}", work, call.id, call.name, call.arguments,
            retry=retry or Retry(max_attempts=live.retry_max_attempts or TOOL_ATTEMPTS, delay=0.5),
        )  # fmt: skip
    except StepFailed as error:
        said = dict(error.cause)
        if error.attempts > 1:
            said["message"] = f"{said.get('message', '')} (after {error.attempts} attempts)"
        return failed_with(said)


async def _first_try(turn: Calling, step: StepContext, call_id: str) -> bool:
    return bool(await turn.agent.resources.pool.fetchval(_SQL["start_tool"], step.run_id, call_id))


def unknown(name: str, known: Sequence[str]) -> ToolResult:
    """The result for a tool that the model made up, or may not see."""
    there = f"the tools are {', '.join(known)}" if known else "there are no tools"
    return failed("UnknownTool", f"there is no tool {name!r}; {there}")
