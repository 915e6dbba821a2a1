"""One call of an agent as an MCP tool: a run is started, told of while it goes, and waited for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from mcp_types import CallToolResult, TextContent
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from perdure.agent.registry import alive
from perdure.client.connection import encoded
from perdure.client.handle import RunHandle
from perdure.edge.about import Descriptions
from perdure.edge.callers import Caller
from perdure.edge.door import Door
from perdure.edge.progress import progress
from perdure.edge.replies import named
from perdure.errors import ApiError, InvalidRequest, NotFound, RunFailed, Unauthorized, Unavailable
from perdure.fields import Id
from perdure.messages import CALL_TOOL, Message, parse
from perdure.subjects import AGENT_NAME, new_run_id

BETWEEN: Final = "__"
"""Between an agent's name and its tool's: a point would be more than some models take in a name."""
RUN_MARK: Final = "perdure.run_id"
SESSION_MARK: Final = "perdure.session_id"
LAST_WORDS: Final = 1.0  # seconds for events that come after the word of the end
CANCELS: Final = 5  # a cancel may come before the start that it follows is accepted

log = structlog.get_logger(__name__)
_cancelling: set[asyncio.Task[None]] = set()


class Arguments(Message):
    """What a call may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = Field(None, min_length=1)
    task: JsonValue = None
    session_id: Id | None = None
    run_id: Id | None = None
    wait: float | None = Field(None, gt=0, le=86_400)

    @model_validator(mode="after")
    def _one_of_them(self) -> Arguments:
        if ("prompt" in self.model_fields_set) == ("task" in self.model_fields_set):
            why = "say it, or 'task' in its place; one of them"
            raise PydanticCustomError("combination", "{why}", {"why": why, "field": "prompt"})
        return self


async def _tool_of(door: Door, about: Descriptions, caller: Caller, name: str) -> tuple[str, str] | None:
    """The agent and the tool of it that a name like `AGENT__TOOL` means, if there are such that the caller may use."""
    if BETWEEN not in name or await alive(door.pool, [name]):
        return None
    for at in (found.start() for found in re.finditer(f"(?={BETWEEN})", name)):
        agent, tool = name[:at], name[at + len(BETWEEN) :]
        usable = AGENT_NAME.fullmatch(agent) and caller.uses(agent) and door.only in (None, agent)
        if not usable or not await alive(door.pool, [agent]):
            continue
        if any(each["name"] == tool for each in (await about.about([agent]))[agent].tools):
            return agent, tool
    return None


def _mark(meta: Mapping[str, Any], name: str) -> str | None:
    """What a call says of itself in its `_meta`. Raises `InvalidRequest`."""
    said = meta.get(name)
    if said is not None and not isinstance(said, str):
        raise InvalidRequest(f"field '_meta.{name}': it must be a text")
    return said


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may be made."""

    door: Door
    caller: Caller
    agent: str
    task: Any
    run_id: str
    session_id: str
    wait: float | None = None
    workflow: str = "run"

    @classmethod
    async def prepared(
        cls, door: Door, about: Descriptions, caller: Caller, name: str, said: dict[str, Any], meta: Mapping[str, Any]
    ) -> Call:
        """Check who calls and what is said. Raises `ApiError`."""
        caller.need("operator")
        found = await _tool_of(door, about, caller, name)
        if found is not None:
            agent, tool = found
            run_id = caller.own(_mark(meta, RUN_MARK) or new_run_id())
            session = _mark(meta, SESSION_MARK)
            session_id = caller.own(session, field="session_id") if session else run_id
            call = {"tool": tool, "arguments": said}
            return cls(door, caller, agent, call, run_id, session_id, workflow=CALL_TOOL)
        agent = door.agent(caller, named(name))
        if not await alive(door.pool, [agent]):
            raise NotFound(f"no process of an agent {agent!r} is up; tools/list has what there is")
        arguments = parse(Arguments, encoded(said))
        run_id = caller.own(arguments.run_id or new_run_id())
        session_id = caller.own(arguments.session_id, field="session_id") if arguments.session_id else run_id
        task = arguments.task if arguments.prompt is None else arguments.prompt
        return cls(door, caller, agent, task, run_id, session_id, arguments.wait)

    async def answer(self, ctx: Any) -> CallToolResult:
        """Start the run and give its result. A client that lets go of the call cancels the run. Raises `ApiError`."""
        with self.door.load.held():
            return await self._answer(ctx)

    async def _answer(self, ctx: Any) -> CallToolResult:
        try:
            run = await self.door.client.start(
                self.agent, self.task, workflow=self.workflow, run_id=self.run_id, session_id=self.session_id
            )
            return self._result(await self._ended(run, ctx))
        except asyncio.CancelledError:
            # Before 2026-07-28 a connection that is cut is no cancel, and a gateway that stops is never one.
            if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and not self.door.stopping.is_set():
                task = asyncio.create_task(self._cancel())
                _cancelling.add(task)
                task.add_done_callback(_cancelling.discard)
            raise

    async def _ended(self, run: RunHandle, ctx: Any) -> dict[str, Any]:
        """The run when it has ended, or after `wait` seconds."""
        ending = asyncio.ensure_future(run.ended())
        stopping = asyncio.ensure_future(self.door.stopping.wait())
        wanted = ctx.meta is not None and ctx.meta.get("progress_token") is not None
        telling = [asyncio.ensure_future(self._tell(run, ctx))] if wanted else []
        try:
            async with asyncio.timeout(self.wait):
                while not ending.done():
                    beat = self.door.settings.gateway_heartbeat
                    await asyncio.wait({ending, stopping}, timeout=beat, return_when=asyncio.FIRST_COMPLETED)
                    if stopping.done() and not ending.done():
                        raise Unavailable(
                            f"this gateway is stopping; run {self.run_id} goes on, call again with its run_id",
                            run_id=self.run_id,
                        )
                    if not ending.done() and not await self.door.gate.still(self.caller):
                        raise Unauthorized("this key is expired or revoked", run_id=self.run_id)
            if telling:
                await asyncio.wait(telling, timeout=LAST_WORDS)
            return ending.result()
        except TimeoutError:
            return await run.details(steps=False)
        finally:
            for each in (ending, stopping, *telling):
                each.cancel()
            await asyncio.gather(ending, stopping, *telling, return_exceptions=True)

    async def _tell(self, run: RunHandle, ctx: Any) -> None:
        """Say what happens, as progress: a number that rises by one, and a text."""
        count = 0
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    if (text := progress(event)) is not None:
                        count += 1
                        await ctx.session.report_progress(count, None, text)
        except ApiError as error:
            log.info("the progress of a call is not told", action="mcp.no_progress", code=error.code)

    def _result(self, run: dict[str, Any]) -> CallToolResult:
        about = {RUN_MARK: self.run_id, SESSION_MARK: self.session_id, "perdure.status": run["status"]}
        if run["status"] in ("failed", "cancelled", "dead", "blocked", "needs_review"):
            raise RunFailed(self.run_id, run["status"], run.get("error"))
        if run["status"] != "completed":
            said = {"run_id": self.run_id, "session_id": self.session_id, "status": run["status"]}
            text = f"Not done yet: run {self.run_id} is {run['status']} and goes on. Call again with its run_id."
            return CallToolResult(content=[TextContent(text=text)], structured_content=said, _meta=about)
        output = run.get("output")
        text = output if isinstance(output, str) else orjson.dumps(output).decode()
        structured = output if isinstance(output, dict) else None
        return CallToolResult(content=[TextContent(text=text)], structured_content=structured, _meta=about)

    async def _cancel(self) -> None:
        said = {"run_id": self.run_id, "reason": f"cancelled by {self.caller.name}: the MCP client let go of the call"}
        for attempt in range(CANCELS):
            try:
                await self.door.client.request("run.cancel", said, repeat=True)
            except NotFound:
                await asyncio.sleep(0.1 * 2**attempt)
            except ApiError as error:
                log.warning("a run was not cancelled", action="mcp.not_cancelled", run_id=self.run_id, code=error.code)
                return
            else:
                return
