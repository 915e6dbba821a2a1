"""How the parts of a running platform are, seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nats import errors as nats_errors

from perdure.bus.connection import identity
from perdure.bus.namespace import client_in
from perdure.embedded.presence import described
from perdure.embedded.state import Part, PlatformState
from perdure.settings import load_settings


@dataclass(frozen=True, slots=True)
class Seen:
    """A part as it looks from outside.

    `health` is `ok`, `stopped` (its process is gone) or `silent` (it is there and does not answer), `metrics` the
    address where it tells what it counts, if it does.
    """

    health: str
    metrics: str | None


async def part_health(state: PlatformState) -> dict[str, Seen]:
    """Each part, by name."""
    present = await _present(state)
    found = await asyncio.gather(*(_health(part, present) for part in state.parts))
    return {part.name: Seen(health, present.get(part.name)) for part, health in zip(state.parts, found, strict=True)}


async def _health(part: Part, present: Mapping[str, str | None]) -> str:
    if part.running is not None and await asyncio.to_thread(part.running.process) is None:
        return "stopped"
    answers = await _listens(part.url) if part.url else part.name in present
    return "ok" if answers else "silent"


async def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(2.0):
            _, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port)
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return True


async def _present(state: PlatformState) -> dict[str, str | None]:
    """The process names that answer on this platform's NATS, and where they tell their metrics."""
    if state.urls is None:
        return {}
    try:
        settings = load_settings().model_copy(update={"nats_url": state.urls.nats_url})
        who = await asyncio.to_thread(identity, settings)
        nc = client_in(settings.namespace)
        await nc.connect(settings.nats_url, allow_reconnect=False, connect_timeout=2, error_cb=_ignored, **who)
    except (OSError, nats_errors.Error):
        return {}
    try:
        return {said["process"]: said.get("metrics") for said in (await described(nc, wait=0.5)).values()}
    finally:
        await nc.close()


async def _ignored(_error: Exception) -> None:
    """`connect` raises it too."""
