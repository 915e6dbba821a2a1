"""Hooks: code of the author's around model and tool calls, which may change, deny or ask a person.

They run inside journaled steps: what a hook decided is not asked again on a replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import structlog

from perdure.llm.types import ModelReply, ModelRequest

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hook says of a tool call; build it with `allow`, `change`, `deny` or `ask`."""

    kind: Literal["allow", "change", "deny", "ask"] = "allow"
    reason: str = ""
    arguments: str = ""  # JSON text, for `change`

    @classmethod
    def allow(cls) -> Verdict:
        """The call is made as it is."""
        return cls()

    @classmethod
    def change(cls, arguments: Mapping[str, Any], reason: str = "") -> Verdict:
        """The call is made with these arguments; the model is told."""
        return cls("change", reason, orjson.dumps(dict(arguments)).decode())

    @classmethod
    def deny(cls, reason: str) -> Verdict:
        """The call is not made; the model is told why."""
        return cls("deny", reason)

    @classmethod
    def ask(cls, reason: str) -> Verdict:
        """A person has to decide."""
        return cls("ask", reason)


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a hook is called: run, agent and session; for a tool the call's id, name and arguments (JSON text)."""

    agent: str
    run_id: str
    session_id: str
    call_id: str = ""
    tool: str = ""
    arguments: str = ""


class Hooks:
    """Base of an author's hooks; each method may be left out. Several stand in the order of the agent's `hooks=`.

    A hook that raises stops a model call like any failing step; a tool call it denies.
    """

    async def before_model(self, request: ModelRequest, at: Moment) -> ModelRequest | None:  # noqa: ARG002
        """Change what the model is asked: return another request, or None."""
        return None

    async def after_model(self, reply: ModelReply, at: Moment) -> ModelReply | None:  # noqa: ARG002
        """Change what the model answered: return another reply, or None."""
        return None

    async def before_tool(self, at: Moment) -> Verdict | None:  # noqa: ARG002
        """Decide about a tool call; None allows it."""
        return None

    async def after_tool(self, at: Moment, result: str) -> str | None:  # noqa: ARG002
        """Change what the model reads of a tool's result: return another text, or None."""
        return None


class HookChain:
    """The hooks of one agent, in order."""

    def __init__(self, hooks: Sequence[Hooks]) -> None:
        self._hooks = tuple(hooks)
        self.decides_tools = any(type(hook).before_tool is not Hooks.before_tool for hook in self._hooks)

    async def before_model(self, request: ModelRequest, at: Moment) -> ModelRequest:
        """The request as the hooks leave it."""
        for hook in self._hooks:
            request = await hook.before_model(request, at) or request
        return request

    async def after_model(self, reply: ModelReply, at: Moment) -> ModelReply:
        """The reply as the hooks leave it."""
        for hook in self._hooks:
            reply = await hook.after_model(reply, at) or reply
        return reply

    async def before_tool(self, at: Moment) -> Verdict:
        """The first verdict that is not `allow`; a hook that raises denies."""
        for hook in self._hooks:
            try:
                verdict = await hook.before_tool(at)
            except Exception as error:
                log.exception("a hook failed, so the call is denied", action="hook.failed", tool=at.tool)
                return Verdict.deny(f"a check of this call failed ({type(error).__name__})")
            if verdict is not None and verdict.kind != "allow":
                return verdict
        return Verdict.allow()

    async def after_tool(self, at: Moment, result: str) -> str:
        """The result as the hooks leave it."""
        for hook in self._hooks:
            changed = await hook.after_tool(at, result)
            result = result if changed is None else changed
        return result
