"""One turn of a conversation: the model is asked, tools are called, until there is an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from perdure.agent.background import schedule
from perdure.agent.model import Deltas
from perdure.agent.schema import ToolArgumentsError
from perdure.agent.session import Opened, dump, window
from perdure.agent.structured import Structured
from perdure.agent.tool_calls import ToolResult, content_of, failed, failed_with, run_function
from perdure.agent.tools import Tool
from perdure.config.keys import DurableAgentSettings
from perdure.engine import Context, Retry, StepContext
from perdure.engine.codec import short_hash
from perdure.errors import ControlFlow, InvalidRequest, PermanentError, RetryableError, StepFailed
from perdure.llm.types import Message, ModelReply, ModelRequest, ToolRequest
from perdure.store.postgres import Connection

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent

WAKE: Final = "wake"
"""The key of a task that begins a turn without a user's message: a background tool is done."""
MODEL_ATTEMPTS: Final = 4
TOOL_TIMEOUT: Final = 120.0
MODEL_TIMEOUT: Final = 900.0
MOST_CALLS: Final = 64
"""Tool calls of one model answer that are run; the others are told to come again."""

log = structlog.get_logger()


def read_prompt(task: Any) -> Any:
    """The user's message in a task, or None for a turn that a background tool begins.

    Raises `InvalidRequest` naming what is expected.
    """
    if isinstance(task, Mapping) and isinstance(task.get(WAKE), str):
        return None
    prompt = task.get("task", task.get("prompt")) if isinstance(task, Mapping) else task
    if not isinstance(prompt, str):
        got = "an object without one" if isinstance(task, Mapping) and prompt is None else type(prompt).__name__
        raise InvalidRequest(f'the task of an agent is a text, or {{"task": text}}; this one is {got}')
    if not prompt.strip():
        raise InvalidRequest("the task is empty: say what the agent is to do")
    return prompt


class Turn:
    """What one run of a `DurableAgent` does. All it knows comes from the journal, so that a replay is the same."""

    def __init__(self, agent: DurableAgent, ctx: Context, task: Any) -> None:
        self.agent = agent
        self.ctx = ctx
        self.session = ctx.session_id or ctx.run_id
        self.prompt = read_prompt(task)
        self.said: list[Message] = []  # since the turn was opened
        self.structured = Structured(agent.output) if agent.output is not None else None

    async def play(self) -> Any:
        """The answer; None for a wake-up whose results an earlier turn has told already."""
        opened = await self._open()
        if self.prompt is None and not opened.taken:
            await self._append([], close=True)
            return None
        iteration = 0
        while True:
            await self.ctx.adopt_config()
            live = self.agent.live(self.ctx.config)
            last = iteration + 1 >= (live.max_iterations or self.agent.max_iterations)
            reply = await self._ask(opened, live, iteration, last=last)
            if reply.tool_calls and not last:
                await self._use_tools(live, reply, iteration)
            else:
                done, output = await self._answer(reply, last=last)
                if done:
                    return output
            iteration += 1

    # -- the conversation ---------------------------------------------------------------------------------------------

    async def _open(self) -> Opened:
        agent, run_id = self.agent, self.ctx.run_id
        wait = 0.05

        async def open_turn(connection: Connection, session: str, prompt: Any) -> Opened:
            return await agent.sessions.open_turn(connection, session, run_id, prompt)

        while True:
            opened = await self.ctx.transaction("open turn", open_turn, self.session, self.prompt)
            if opened.busy is None:
                break
            await self.ctx.sleep("another turn is open", wait)
            wait = min(wait * 2, 5.0)
        if self.prompt is not None and not opened.taken:
            agent.sessions.remember(self.session, opened.upto, [{"role": "user", "content": self.prompt}])
        return opened

    async def _append(self, messages: Sequence[Message], *, close: bool) -> None:
        agent, run_id = self.agent, self.ctx.run_id

        async def append(connection: Connection, session: str, messages: list[str], close: bool) -> int:
            return await agent.sessions.append(connection, session, run_id, messages, close=close)

        texts = [dump(message) for message in messages]
        first = await self.ctx.transaction("close turn" if close else "append", append, self.session, texts, close)
        agent.sessions.remember(self.session, first, messages)

    # -- the model ----------------------------------------------------------------------------------------------------

    async def _ask(self, opened: Opened, live: DurableAgentSettings, iteration: int, *, last: bool) -> ModelReply:
        agent = self.agent
        system = agent.persona.under(live).prompt(opened.notes)
        said = list(self.said)

        async def ask(conversation: dict[str, Any], step: StepContext) -> ModelReply:
            most = live.history_max_messages or agent.history_max_messages
            pool = agent.resources.pool
            before = await agent.sessions.read(pool, self.session, opened.first, opened.upto, most)
            request = ModelRequest(
                messages=[{"role": "system", "content": system}, *window(before), *window(said)],
                tools=[tool.spec() for tool in self._tools(live).values()],
                tool_choice=self._tool_choice(live, conversation["iteration"], last=last),
                parallel_tools=agent.parallel_tools,
                schema=self.structured.schema if self.structured else None,
            )
            # a retry asks the endpoint that is configured by now: a wrong key or address is mended while the run waits
            settings = live if step.attempt == 1 else agent.live(agent.config)
            deltas = Deltas(step) if agent.stream else None
            try:
                reply = await agent.model.ask(settings, agent.resources, request, on_delta=deltas)
            except (PermanentError, RetryableError, asyncio.CancelledError):
                if deltas is not None:
                    deltas.reset()
                raise
            if deltas is not None:
                deltas.flush()
            return reply

        # the conversation is named, not copied: its rows and this run's journal hold it
        conversation = {"session": self.session, "first": opened.first, "upto": opened.upto, "iteration": iteration}
        retry = Retry(max_attempts=live.retry_max_attempts or MODEL_ATTEMPTS, delay=0.5, max_delay=30.0)
        return await self.ctx.step("model", ask, conversation, retry=retry, timeout=MODEL_TIMEOUT)

    def _tools(self, live: DurableAgentSettings) -> dict[str, Tool]:
        if live.tools_enabled is None:
            return self.agent.toolbox
        return {name: self.agent.toolbox[name] for name in live.tools_enabled if name in self.agent.toolbox}

    def _tool_choice(self, live: DurableAgentSettings, iteration: int, *, last: bool) -> str:
        choice = live.tool_choice or "auto"
        if last:
            return "none"
        if choice == "none" or iteration == 0:
            known = choice in {"auto", "none", "required"} or choice in self._tools(live)
            return choice if known else "auto"
        return "auto"  # a forced tool is forced once, else the turn would never end

    async def _answer(self, reply: ModelReply, *, last: bool) -> tuple[bool, Any]:
        """`(True, output)`, or `(False, None)` when the answer has to be mended and the model is asked again."""
        text = reply.text
        output: Any = text
        if self.structured is not None and reply.stop not in {"refusal", "content_filter"}:
            problem, output = self.structured.read(text)
            if problem is not None:
                if last or not self.structured.may_repair():
                    await self._append([_assistant(reply)], close=True)
                    raise PermanentError(f"the model's answer does not have the output type: {problem}")
                self.said += [_assistant(reply), {"role": "user", "content": self.structured.complaint(problem)}]
                return False, None
        elif self.structured is not None:
            await self._append([_assistant(reply)], close=True)
            raise PermanentError(f"the model declined to answer ({reply.stop}): {text}")
        await self._append([_assistant(reply)], close=True)
        return True, output

    # -- tools --------------------------------------------------------------------------------------------------------

    async def _use_tools(self, live: DurableAgentSettings, reply: ModelReply, iteration: int) -> None:
        # ids of our own: some models count theirs from 0 in each answer
        calls = [
            ToolRequest(f"call_{short_hash(self.ctx.run_id, str(iteration), str(at))}", call.name, call.arguments)
            for at, call in enumerate(reply.tool_calls)
        ]
        if self.agent.parallel_tools and len(calls) > 1:
            results = await self.ctx.gather(*(self._call(live, call) for call in calls[:MOST_CALLS]))
        else:
            results = [await self._call(live, call) for call in calls[:MOST_CALLS]]
        results += [failed("TooMany", f"at most {MOST_CALLS} calls at a time")] * (len(calls) - len(results))
        messages: list[Message] = [_assistant(reply, calls)]
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": result.content}
            for call, result in zip(calls, results, strict=True)
        ]
        self.said += messages
        await self._append(messages, close=False)

    async def _call(self, live: DurableAgentSettings, call: ToolRequest) -> ToolResult:
        tools = self._tools(live)
        tool = tools.get(call.name)
        if tool is not None and tool.background:
            return await schedule(self.agent, self.ctx, tool, call, self.session)
        if tool is not None and tool.wants_context:
            return await self._call_inline(tool, call)
        timeout = live.tool_timeout_seconds or TOOL_TIMEOUT
        retry = Retry(max_attempts=live.retry_max_attempts or 3, delay=0.5)
        return await call_in_step(self.ctx, tool, call, known=sorted(tools), timeout=timeout, retry=retry)

    async def _call_inline(self, tool: Tool, call: ToolRequest) -> ToolResult:
        """A tool with the workflow's context: its own steps and calls are what is journaled."""
        try:
            kwargs = tool.bind(call.arguments)
            return content_of(await tool.function(**kwargs, **tool.injections(ctx=self.ctx)), tool.name)
        except ToolArgumentsError as error:
            return failed("InvalidArguments", str(error))
        except (ControlFlow, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001  (whatever a tool raises is told to the model)
            return failed_with(error)


async def call_in_step(
    ctx: Context, tool: Tool | None, call: ToolRequest, *, known: Sequence[str], timeout: float, retry: Retry
) -> ToolResult:
    """One tool call as a journaled step; whatever goes wrong is the result that the model reads."""

    async def work(call_id: str, name: str, arguments: str, step: StepContext) -> ToolResult:
        if tool is None:
            there = f"the tools are {', '.join(known)}" if known else "there are no tools"
            return failed("UnknownTool", f"there is no tool {name!r}; {there}")
        try:
            kwargs = tool.bind(arguments)
        except ToolArgumentsError as error:
            return failed("InvalidArguments", str(error))
        step.delta("tool.started", {"tool": name, "call_id": call_id})
        try:
            value = await run_function(tool, {**kwargs, **tool.injections(step=step)}, tool.timeout or timeout)
        except (RetryableError, ControlFlow):
            raise
        except Exception as error:
            if tool.retry is not None and not isinstance(error, PermanentError):
                raise
            log.info("tool failed", action="tool.failed", tool=name, call_id=call_id, exc_info=error)
            result = failed_with(error)
        else:
            result = content_of(value, name)
        step.delta("tool.completed", {"tool": name, "call_id": call_id, "error": result.error})
        return result

    chosen = tool.retry if tool is not None and tool.retry is not None else retry
    try:
        return await ctx.step(f"tool:{call.name}", work, call.id, call.name, call.arguments, retry=chosen)
    except StepFailed as error:
        said = dict(error.cause)
        if error.attempts > 1:
            said["message"] = f"{said.get('message', '')} (after {error.attempts} attempts)"
        return failed_with(said)


def _assistant(reply: ModelReply, calls: Sequence[ToolRequest] = ()) -> Message:
    message: Message = {"role": "assistant", "content": reply.text or None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    elif not reply.text:
        message["content"] = ""
    if reply.stop in {"length", "refusal", "content_filter"}:
        message["stop"] = reply.stop
    return message
