"""What agents say they are: told by any of their processes (`$SRV.INFO`), remembered for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client as Nats

FRESH: Final = 30.0  # seconds
PATIENCE: Final = 0.5  # seconds: a process that does not answer has no description
LONGEST: Final = 2000
MOST: Final = 10_000


class Descriptions:
    """Descriptions by agent."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        self._known: dict[str, tuple[float, str]] = {}

    async def of(self, names: Iterable[str]) -> dict[str, str]:
        """What these agents say of themselves; "" where nobody answers."""
        asked = list(names)
        return dict(zip(asked, await asyncio.gather(*(self._one(name) for name in asked)), strict=True))

    async def _one(self, name: str) -> str:
        at, text = self._known.get(name, (0.0, ""))
        if text and time.monotonic() - at < FRESH:
            return text
        try:
            reply = await self._nats.request(f"$SRV.INFO.{name}", b"", timeout=PATIENCE)
            said = orjson.loads(reply.data)["description"]
        except (nats_errors.Error, TimeoutError, orjson.JSONDecodeError, KeyError, TypeError):
            return text  # what was said before is better than nothing
        text = said[:LONGEST] if isinstance(said, str) else ""
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[name] = (time.monotonic(), text)
        return text
