"""Long conversations: old turns are told to the model as a summary, which the model itself has written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from perdure.agent.handoff import transcript
from perdure.agent.kept import sealed, summary_spot
from perdure.agent.session import Opened
from perdure.agent.settings import AgentSettings
from perdure.engine import Retry, StepContext
from perdure.errors import StepFailed
from perdure.llm.types import ModelReply, ModelRequest
from perdure.store.postgres import Connection
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.agent.turn import Turn

_SQL = load_queries("sessions.sql")
_ASK: Final = (
    "Summarise the conversation below for yourself: facts, decisions, open questions, names and numbers. "
    "At most 300 words, no preamble."
)
_CHARS: Final = 60_000


async def summarised(turn: Turn, opened: Opened, live: AgentSettings) -> Opened:
    """`opened`, with its older half summarised when the conversation has grown beyond the configured length.

    The summary is a journaled model call, kept in one commit with its journal row. A model that cannot summarise now
    leaves the conversation as it is.
    """
    limit = live.session_summarize_after
    first = max(opened.first, opened.summary_upto + 1)
    if limit is None or opened.upto - first + 1 <= limit:
        return opened
    upto = opened.upto - limit // 2
    agent, session = turn.agent, turn.session

    async def summarise(part: dict[str, Any], step: StepContext) -> ModelReply:  # noqa: ARG001  (the step's identity)
        messages = await agent.sessions.read(agent.resources.pool, session, opened.born, first, upto, upto - first + 1)
        before = f"Summary of what came before:\n{opened.summary}\n\n" if opened.summary else ""
        text = f"{before}{transcript(messages, most=_CHARS)}"
        request = ModelRequest([{"role": "system", "content": _ASK}, {"role": "user", "content": text}])
        return await agent.model.ask(live, agent.resources, request)

    async def keep(connection: Connection, session: str, upto: int, text: str) -> None:
        kept = await sealed(connection, text, summary_spot(agent.name, session))
        await connection.execute(_SQL["keep_summary"], agent.name, session, kept, upto)

    try:
        reply = await turn.ctx.step(
            "summarise", summarise, {"session": session, "first": first, "upto": upto}, retry=Retry(max_attempts=2)
        )
    except StepFailed:
        return opened
    turn.spent.add(reply)
    await turn.ctx.transaction("keep summary", keep, session, upto, reply.text)
    return replace(opened, summary=reply.text, summary_upto=upto)
