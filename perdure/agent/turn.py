"""One turn of a conversation: the model is asked, tools are called, until there is an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
import structlog

from perdure.agent.asking import Spent, ask, check_budget
from perdure.agent.calling import run_calls
from perdure.agent.handoff import CONTEXT, hand_over, target_of
from perdure.agent.memory import REMEMBER, recalled, scope_of
from perdure.agent.session import Opened, dump
from perdure.agent.settings import AgentSettings
from perdure.agent.structured import Structured
from perdure.agent.summaries import summarised
from perdure.agent.tool_calls import failed_with
from perdure.agent.tools import Tool
from perdure.agent.users import read_user
from perdure.engine import Context
from perdure.engine.at_once import Columns
from perdure.engine.codec import short_hash
from perdure.engine.committed_step import GOES_ON, Also, short_transaction
from perdure.errors import InvalidRequest, PermanentError, RunFailed
from perdure.llm.types import Message, ModelReply, ToolRequest
from perdure.store.postgres import Connection, PooledConnection, keeps_session

if TYPE_CHECKING:
    from perdure.agent.durable import DurableAgent

WAKE: Final = "wake"
"""The key of a task that begins a turn without a user's message: a background tool is done."""

DECLINED: Final = frozenset({"refusal", "content_filter"})
"""Why a model may stop without an answer of the output type."""

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


def read_notes(task: Any) -> list[str]:
    """What another agent, handing over, says of the conversation so far."""
    context = task.get(CONTEXT) if isinstance(task, Mapping) else None
    return [f"What was said before you took over:\n{context}"] if isinstance(context, str) and context else []


class Turn:
    """What one run of a `DurableAgent` does. All it knows comes from the journal, so that a replay is the same."""

    detaches = True  # the model goes on while a background tool works

    def __init__(self, agent: DurableAgent, ctx: Context, task: Any, *, whole: bool) -> None:
        self.agent = agent
        self.ctx = ctx
        self._whole = whole  # whether the run does nothing else, and ends with the answer
        self.session = ctx.session_id or ctx.run_id
        self.prompt = read_prompt(task)
        self.user = read_user(task)
        self.said: list[Message] = []  # since the turn was opened
        self.notes = read_notes(task)  # lines of the system prompt that are this turn's alone
        self.spent = Spent()
        self.structured = Structured(agent.output) if agent.output is not None else None
        self._born = 0
        self._told = Spent()  # the part of `spent` that is in the session's row
        self._closed_at: int | None = None  # the seq of the answer that this process has closed the turn with

    def tools(self, live: AgentSettings) -> Mapping[str, Tool]:
        """The tools that the model may see."""
        toolbox = dict(self.agent.toolbox)
        if live.memory_enabled:
            toolbox.setdefault(REMEMBER, self.agent.memory.tool(scope_of(live, self.user, self.session)))
        if live.tools_enabled is None:
            return toolbox
        return {name: toolbox[name] for name in live.tools_enabled if name in toolbox}

    async def play(self) -> Any:
        """The answer; None for a wake-up whose results an earlier turn has told already."""
        opened = await self._open()
        if self.prompt is None and not opened.taken:
            await self.append([], close=True)
            return None
        began = self.ctx.now()
        iteration = 0
        while True:
            await self.ctx.adopt_config()
            live = self.agent.live(self.ctx.config)
            if iteration == 0:
                opened = await summarised(self, opened, live)
                self.notes += await recalled(self, live)
            spent_for = (self.ctx.now() - began).total_seconds()
            check_budget(live, self.spent, opened, spent_for, self.agent.model.counts)
            last = iteration + 1 >= (live.max_iterations or self.agent.max_iterations)
            reply = await ask(self, opened, live, iteration, last=last)
            self.spent.add(reply)
            if not self._goes_on(reply, last=last):
                return self._answer(reply)
            if reply.tool_calls:
                handed = target_of(self, live, reply.tool_calls)
                if handed is not None:
                    done, output = await self._hand_over(opened, reply, *handed)
                    if done:
                        return output
                else:
                    calls, results = await run_calls(self, live, reply, iteration)
                    await self._tell(reply, calls, [result.content for result in results])
            else:
                self._repair(reply)
            iteration += 1

    # -- the conversation ---------------------------------------------------------------------------------------------

    async def _open(self) -> Opened:
        agent, run_id = self.agent, self.ctx.run_id
        wait = 0.05

        @keeps_session
        async def open_turn(connection: Connection, session: str, prompt: Any) -> Opened:
            return await agent.sessions.open_turn(connection, session, run_id, prompt)

        async def at_once(connection: PooledConnection, columns: Columns) -> str | None:
            return await agent.sessions.open_at_once(
                cast("Connection", connection), self.session, run_id, self.prompt, (*columns[:-3], columns[-2])
            )

        while True:
            opened = await short_transaction(
                self.ctx, "open turn", open_turn, self.session, self.prompt, statement=at_once
            )
            if opened.busy is None:
                break
            await self.ctx.sleep("another turn is open", wait)
            wait = min(wait * 2, 5.0)
        if self.prompt is not None and not opened.taken:
            agent.sessions.remember(self.session, opened.born, opened.upto, [{"role": "user", "content": self.prompt}])
        self._born = opened.born
        return opened

    async def append(self, messages: Sequence[Message], *, close: bool) -> None:
        """Put messages, and what they cost, into the conversation."""
        agent, run_id = self.agent, self.ctx.run_id
        cost, self._told = self.spent.since(self._told), replace(self.spent)

        @keeps_session
        async def append(connection: Connection, session: str, messages: list[str], close: bool) -> int:
            return (await agent.sessions.append(connection, session, run_id, messages, close=close, cost=cost)).first

        texts = [dump(message) for message in messages]
        first = await self.ctx.transaction("close turn" if close else "append", append, self.session, texts, close)
        agent.sessions.remember(self.session, self._born, first, messages)

    def closing(self, reply: ModelReply, *, last: bool) -> Also | None:
        """What closes the turn with `reply`, to be committed with the reply's own row; None when the turn goes on."""
        if self._goes_on(reply, last=last):
            return None
        spent = replace(self.spent)
        spent.add(reply)
        cost = spent.since(self._told)

        async def close(connection: Connection, columns: Columns) -> bool | None:
            first, joined = await self.agent.sessions.append(
                connection, self.session, self.ctx.run_id, [dump(assistant(reply))],
                close=True, cost=cost, columns=columns,
            )  # fmt: skip
            self._closed_at = first
            if joined is not None:  # the run has ended, and `_answer` is not asked
                self.agent.sessions.remember(self.session, self._born, first, [assistant(reply)])
            return joined

        return Also(close, self._output(reply) if self._whole else GOES_ON)

    def _output(self, reply: ModelReply) -> Any:
        """What the run returns for its last answer, if that is an answer of the output type."""
        if self.structured is None:
            return reply.text
        problem, output = self.structured.read(reply.text)
        return GOES_ON if problem is not None or reply.stop in DECLINED else output

    def _goes_on(self, reply: ModelReply, *, last: bool) -> bool:
        """Whether more is to come after `reply`: tools that it asks for, or a better answer."""
        if last:
            return False
        if reply.tool_calls:
            return True
        if self.structured is None or reply.stop in DECLINED or not self.structured.may_repair:
            return False
        return self.structured.read(reply.text)[0] is not None

    async def _tell(self, reply: ModelReply, calls: Sequence[ToolRequest], results: Sequence[str]) -> None:
        messages = [assistant(reply, calls)]
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": content}
            for call, content in zip(calls, results, strict=True)
        ]
        self.said += messages
        await self.append(messages, close=False)

    async def _hand_over(self, opened: Opened, reply: ModelReply, call: ToolRequest, target: str) -> tuple[bool, Any]:
        """Let another agent answer; `(False, None)` when it cannot, which the model is told."""
        call = replace(call, id=f"call_{short_hash(self.ctx.run_id, str(len(self.said)))}")
        try:
            output = await hand_over(self, opened, target)
        except RunFailed as error:
            await self._tell(reply, [call], [failed_with(error).content])
            return False, None
        await self._tell(reply, [call], [f"{target} answers"])
        text = output if isinstance(output, str) else orjson.dumps(output).decode()
        await self.append([{"role": "assistant", "content": text, "agent": target}], close=True)
        return True, output

    def _answer(self, reply: ModelReply) -> Any:
        """The output that the turn has ended with. Raises `PermanentError` for an answer that cannot be one."""
        if self._closed_at is not None:  # by this process: on a replay the conversation is read when it is wanted
            self.agent.sessions.remember(self.session, self._born, self._closed_at, [assistant(reply)])
        if self.structured is None:
            return reply.text
        if reply.stop in DECLINED:
            raise PermanentError(f"the model declined to answer ({reply.stop}): {reply.text}")
        problem, output = self.structured.read(reply.text)
        if problem is not None:
            raise PermanentError(f"the model's answer does not have the output type: {problem}")
        return output

    def _repair(self, reply: ModelReply) -> None:
        """Have the model asked again for an answer of the output type."""
        assert self.structured is not None  # noqa: S101  (only its answers are mended)
        problem, _ = self.structured.read(reply.text)
        self.structured.repair()
        self.said += [assistant(reply), {"role": "user", "content": self.structured.complaint(problem or "")}]


def assistant(reply: ModelReply, calls: Sequence[ToolRequest] = ()) -> Message:
    """A model's answer as the conversation holds it; `stop` says why it is not a whole one."""
    message: Message = {"role": "assistant", "content": reply.text or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    if reply.stop in {"length", "refusal", "content_filter"}:
        message["stop"] = reply.stop
    return message
