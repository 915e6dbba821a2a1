"""What agents say they are: told by any of their processes (`$SRV.INFO`), remembered for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client as Nats

FRESH: Final = 30.0  # seconds
PATIENCE: Final = 0.5  # seconds: a process that does not answer has no description
LONGEST: Final = 2000
MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class About:
    """What an agent says of itself: `description`, and of each tool `name`, `description`, `parameters`."""

    description: str = ""
    tools: Sequence[dict[str, Any]] = ()


class Descriptions:
    """Descriptions by agent."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._known: dict[str, tuple[float, About]] = {}

    async def of(self, names: Iterable[str]) -> dict[str, str]:
        """What these agents say they are; "" where nobody answers."""
        return {name: each.description for name, each in (await self.about(names)).items()}

    async def about(self, names: Iterable[str]) -> dict[str, About]:
        """What these agents say of themselves; nothing where nobody answers."""
        asked = list(names)
        return dict(zip(asked, await asyncio.gather(*(self._one(name) for name in asked)), strict=True))

    async def _one(self, name: str) -> About:
        at, known = self._known.get(name, (0.0, About()))
        if at and time.monotonic() - at < FRESH:
            return known
        try:
            reply = await self._nats.request(f"$SRV.INFO.{name}", b"", timeout=PATIENCE)
            said = orjson.loads(reply.data)
            found = About(_text(said["description"]), [each for each in said.get("tools", ()) if _is_tool(each)])
        except (nats_errors.Error, TimeoutError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return known  # what was said before is better than nothing
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[name] = (time.monotonic(), found)
        return found


def _text(said: Any) -> str:
    return said[:LONGEST] if isinstance(said, str) else ""


def _is_tool(said: Any) -> bool:
    return (
        isinstance(said, dict)
        and isinstance(said.get("name"), str)
        and isinstance(said.get("description"), str)
        and isinstance(said.get("parameters"), dict)
    )
