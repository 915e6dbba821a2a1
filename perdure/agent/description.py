"""What an agent says it is, to those who look for one."""

from __future__ import annotations

import inspect
from typing import Any, Final

from perdure.agent.base import BaseAgent

LONGEST: Final = 1000


def description_of(agent: BaseAgent) -> str:
    """The first paragraph of its class's docstring; else a persona's role and goal; else nothing."""
    kind = type(agent)
    said = "" if kind.__module__.startswith("perdure.") else inspect.cleandoc(vars(kind).get("__doc__") or "")
    if not said:
        persona: Any = getattr(agent, "persona", None)
        parts = (getattr(persona, "role", None), getattr(persona, "goal", None))
        said = ". ".join(part.strip().rstrip(".") for part in parts if isinstance(part, str) and part.strip())
    return " ".join(said.split("\n\n")[0].split())[:LONGEST]
