"""Other agents as tools, and hand-offs: durable child runs, made only to the agents that the author named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure import subjects
from perdure.agent.tools import Tool
from perdure.agent.users import user_of, with_user
from perdure.engine import Context
from perdure.errors import PermanentError, RunFailed

if TYPE_CHECKING:
    from perdure.agent.base import BaseAgent


def agent_tool(
    agent: BaseAgent | str,
    *,
    name: str | None = None,
    description: str | None = None,
    background: bool = False,
    wake: bool = False,
    requires_approval: bool = False,
) -> Tool:
    """A tool that gives a task to `agent` (an agent, or the name of one that runs elsewhere) and returns its answer.

    Each call is a durable child run. Raises `ValueError` for a name that no agent can have.
    """
    target = subjects.agent_name(agent if isinstance(agent, str) else agent.name)

    async def ask_agent(task: str, ctx: Context) -> Any:
        try:
            user = user_of(ctx)
            return await ctx.call(target, task if user is None else with_user({"task": task}, user))
        except RunFailed as error:
            said = error.error.get("message", "no reason was recorded")
            raise PermanentError(f"agent {target} ended {error.status}: {said}") from error

    made = Tool(
        ask_agent,
        name=name or target.replace("-", "_"),
        description=description or _about(agent, target),
        background=background,
        wake=wake,
        requires_approval=requires_approval,
    )
    made.agent = None if isinstance(agent, str) else agent
    return made


def _about(agent: BaseAgent | str, target: str) -> str:
    persona = getattr(agent, "persona", None)
    parts = [f"Give a task to the agent {target}, and get its answer."]
    if persona is not None and persona.role:
        parts.append(f"It is {persona.role}.")
    if persona is not None and persona.goal:
        parts.append(f"Its goal: {persona.goal}")
    return " ".join(parts)


def handoff_name(target: str) -> str:
    """The tool by which a model hands the conversation over."""
    return f"transfer_to_{target.replace('-', '_')}"


def handoff_tool(agent: BaseAgent | str) -> Tool:
    """The tool that ends a turn by letting `agent` answer in its place, with all that was said."""
    target = subjects.agent_name(agent if isinstance(agent, str) else agent.name)

    async def transfer(reason: str = "") -> str:
        return reason

    made = Tool(
        transfer,
        name=handoff_name(target),
        description=f"Hand the conversation over to {target}, who answers instead. {_about(agent, target)}",
    )
    made.agent = None if isinstance(agent, str) else agent
    made.handoff = target
    return made
