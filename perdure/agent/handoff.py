"""Hand-offs: another agent answers in this one's place, knowing what was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from perdure.agent.schema import ToolArgumentsError
from perdure.agent.session import Opened
from perdure.agent.settings import AgentSettings
from perdure.agent.users import with_user
from perdure.llm.types import Message, ToolRequest

if TYPE_CHECKING:
    from perdure.agent.turn import Turn

CONTEXT: Final = "context"
"""The key of a task under which the new agent finds what was said before."""
_MESSAGES: Final = 30
_CHARS: Final = 12_000


def target_of(turn: Turn, live: AgentSettings, calls: Sequence[ToolRequest]) -> tuple[ToolRequest, str] | None:
    """The hand-off among the calls of an answer, and the agent it names; the first one counts."""
    tools = turn.tools(live)
    for call in calls:
        tool = tools.get(call.name)
        if tool is not None and tool.handoff is not None:
            try:
                tool.bind(call.arguments)
            except ToolArgumentsError:
                continue  # told to the model like any other bad call
            return call, tool.handoff
    return None


async def hand_over(turn: Turn, opened: Opened, target: str) -> Any:
    """The answer of `target`. Raises `RunFailed` when it has none."""

    async def what_was_said(upto: int) -> str:
        pool, sessions = turn.agent.resources.pool, turn.agent.sessions
        return transcript(await sessions.read(pool, turn.session, opened.born, opened.first, upto, _MESSAGES))

    context = await turn.ctx.step("what was said", what_was_said, opened.upto)
    task = with_user({"task": turn.prompt or "Go on.", CONTEXT: context}, turn.user)
    return await turn.ctx.call(target, task, session_id=turn.session)


def transcript(messages: Sequence[Message], *, most: int = _CHARS) -> str:
    """What people and agents said, as text of at most `most` characters; the newest counts most."""
    lines = [
        f"{one['role']}: {one['content']}"
        for one in messages
        if one.get("role") in {"user", "assistant"} and isinstance(one.get("content"), str) and one["content"]
    ]
    return "\n".join(lines)[-most:]
