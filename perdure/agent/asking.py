"""The model step of a turn: what it is asked, under which limits, and what its answer costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from perdure.agent.hooks import Moment
from perdure.agent.model import Deltas
from perdure.agent.session import Opened, window
from perdure.agent.settings import AgentSettings
from perdure.engine import Retry, StepContext
from perdure.engine.committed_step import committed_step
from perdure.errors import PermanentError
from perdure.llm.types import Message, ModelReply, ModelRequest

if TYPE_CHECKING:
    from perdure.agent.counts import AgentCounts
    from perdure.agent.turn import Turn

MODEL_ATTEMPTS: Final = 4
MODEL_TIMEOUT: Final = 900.0

log = structlog.get_logger()


@dataclass(slots=True)
class Spent:
    """What model calls have cost: tokens read and written, money in the unit of the configured prices."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def add(self, reply: ModelReply) -> None:
        """Count one answer."""
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        self.cost += reply.cost or 0.0

    def since(self, earlier: Spent) -> tuple[int, int, float]:
        """What was spent after `earlier`: tokens read, tokens written, money."""
        return (
            self.input_tokens - earlier.input_tokens,
            self.output_tokens - earlier.output_tokens,
            self.cost - earlier.cost,
        )

    @property
    def tokens(self) -> int:
        """Both kinds together."""
        return self.input_tokens + self.output_tokens


def check_budget(
    live: AgentSettings, run: Spent, opened: Opened, seconds: float, counts: AgentCounts | None = None
) -> None:
    """Raises `PermanentError` naming the budget that is used up and the key that raises it."""
    limits = (
        ("budget_run_tokens", live.budget_run_tokens, run.tokens, "tokens"),
        ("budget_run_cost", live.budget_run_cost, run.cost, "cost"),
        ("budget_run_seconds", live.budget_run_seconds, seconds, "seconds"),
        ("budget_session_tokens", live.budget_session_tokens, opened.tokens + run.tokens, "tokens"),
        ("budget_session_cost", live.budget_session_cost, opened.cost + run.cost, "cost"),
    )
    for key, limit, used, unit in limits:
        if limit is not None and used >= limit:
            if counts is not None:
                counts.spent(key)
            raise PermanentError(f"{key} is used up: {used:g} of {limit:g} {unit}; raise it to go on")


def tool_choice(turn: Turn, live: AgentSettings, iteration: int, *, last: bool) -> str:
    """What the model is told about tools. A forced tool is forced once, else the turn would never end."""
    choice = live.tool_choice or "auto"
    if last or choice == "none":
        return "none"
    if iteration == 0 and (choice in {"auto", "required"} or choice in turn.tools(live)):
        return choice
    return "auto"


async def ask(turn: Turn, opened: Opened, live: AgentSettings, iteration: int, *, last: bool) -> ModelReply:
    """One model call as a journaled step; the conversation is named in its arguments, never copied.

    An answer that ends the turn closes it in the commit of its row.
    """
    agent, ctx = turn.agent, turn.ctx
    said: list[Message] = list(turn.said)
    at = Moment(agent.name, ctx.run_id, turn.session)
    if live.rate_limit is not None:
        await _wait_for_slot(turn, live.rate_limit)

    async def ask_model(conversation: dict[str, Any], step: StepContext) -> ModelReply:
        # a retry asks the endpoint that is configured by now: a wrong key or address is mended while the run waits
        settings = live if step.attempt == 1 else agent.live(agent.config)
        request = ModelRequest(
            messages=[*await _before(turn, opened, live), *window(said)],
            tools=[tool.spec() for tool in turn.tools(live).values()],
            tool_choice=tool_choice(turn, live, conversation["iteration"], last=last),
            parallel_tools=agent.parallel_tools,
            schema=turn.structured.schema if turn.structured else None,
        )
        request = await agent.hooks.before_model(request, at)
        deltas = Deltas(step) if agent.stream else None
        reply = await agent.model.ask(settings, agent.resources, request, deltas)
        return await agent.hooks.after_model(reply, at)

    conversation = {"session": turn.session, "first": opened.first, "upto": opened.upto, "iteration": iteration}
    retry = Retry(max_attempts=live.retry_max_attempts or MODEL_ATTEMPTS, delay=0.5, max_delay=30.0)
    return await committed_step(
        ctx, "model", ask_model, conversation, follows=lambda reply: turn.closing(reply, last=last),
        retry=retry, timeout=MODEL_TIMEOUT,
    )  # fmt: skip


async def _before(turn: Turn, opened: Opened, live: AgentSettings) -> list[Message]:
    """The system prompt and the messages from before this turn's first answer."""
    agent = turn.agent
    notes = [*opened.notes, *turn.notes]
    if opened.summary:
        notes.append(f"Earlier in this conversation:\n{opened.summary}")
    system = agent.persona.under(live).prompt(notes)
    most = live.history_max_messages or agent.history_max_messages
    first = max(opened.first, opened.summary_upto + 1)
    before = await agent.sessions.read(agent.resources.pool, turn.session, opened.born, first, opened.upto, most)
    return [{"role": "system", "content": system}, *window(before)]


async def _wait_for_slot(turn: Turn, per_minute: float) -> None:
    """Reserve a slot under the limit of all replicas, then wait for it without holding memory."""
    agent = turn.agent

    async def reserve(per_minute: float) -> float:
        return round(await agent.model.wait_for_slot(per_minute, agent.resources), 3)

    seconds = await turn.ctx.step("rate limit", reserve, per_minute)
    if seconds > 0:
        await turn.ctx.sleep("rate limit", seconds)
