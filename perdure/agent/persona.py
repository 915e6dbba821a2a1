"""Who an agent is: its constructor's words, with the live configuration laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from perdure.config.keys import DurableAgentSettings


def _lines(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, slots=True)
class Persona:
    """The parts of a system prompt. What is empty is not said."""

    name: str
    role: str = ""
    goal: str = ""
    instructions: tuple[str, ...] = ()
    system_prompt: str = ""
    style_guidelines: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        *,
        role: str | None = None,
        goal: str | None = None,
        instructions: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        style_guidelines: str | Sequence[str] | None = None,
    ) -> Persona:
        """A persona from an agent's constructor; one text stands for a list of one."""
        return cls(name, role or "", goal or "", _lines(instructions), system_prompt or "", _lines(style_guidelines))

    def under(self, settings: DurableAgentSettings) -> Persona:
        """The persona with what the configuration says in place of the constructor's words."""
        said = {
            "role": settings.agent_role,
            "goal": settings.agent_goal,
            "system_prompt": settings.agent_system_prompt,
            "instructions": None if settings.agent_instructions is None else tuple(settings.agent_instructions),
            "style_guidelines": (
                None if settings.agent_style_guidelines is None else tuple(settings.agent_style_guidelines)
            ),
        }
        changed = {key: value for key, value in said.items() if value is not None}
        return replace(self, **changed) if changed else self  # type: ignore[arg-type]

    def prompt(self, notes: Sequence[str] = ()) -> str:
        """The system prompt; `notes` are lines of this turn alone.

        `system_prompt` takes the place of the opening sentence; role, goal, instructions and style follow it, so that
        a change of one of them always reaches the model.
        """
        parts = [self.system_prompt or f"You are {self.name}."]
        if self.role:
            parts.append(f"Your role: {self.role}")
        if self.goal:
            parts.append(f"Your goal: {self.goal}")
        if self.instructions:
            parts.append("Instructions:\n" + "\n".join(f"- {line}" for line in self.instructions))
        if self.style_guidelines:
            parts.append("Style:\n" + "\n".join(f"- {line}" for line in self.style_guidelines))
        parts.extend(notes)
        return "\n".join(parts)
