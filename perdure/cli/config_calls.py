"""The requests behind `perdure config`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.connection import connect
from perdure.bus.wire import request
from perdure.cli.config_view import applied_line, update_line
from perdure.config.fetch import fetch_reply
from perdure.embedded.locate import locate
from perdure.settings import load_settings

T = TypeVar("T")


async def calling(work: Callable[[Caller], Awaitable[T]]) -> T:
    """Connect, do `work`, close."""
    nc = await connect(await asyncio.to_thread(locate, load_settings()), "perdure config")
    try:
        return await work(Caller(nc))
    finally:
        await nc.close()


class Caller:
    """Each method is one request; errors are those of the ConfigManager."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    async def _ask(self, subject: str, agent: str, **body: Any) -> dict[str, Any]:
        given = {key: value for key, value in body.items() if value is not None}
        return await request(self._nc, subject, {"agent_name": agent, **given}, timeout=10)

    async def get(
        self,
        agent: str,
        *,
        instance: str | None = None,
        revision: int | None = None,
        own: bool = False,
        explain: bool = False,
    ) -> dict[str, Any]:
        """What `agent` gets; `own`: its own rows alone, `revision`: as it was then, `explain`: with their origins."""
        asked: dict[str, Any] = {"agent_name": agent, "instance_id": instance, "revision": revision}
        asked |= {"own": own or None, "explain": explain or None}
        body = {key: value for key, value in asked.items() if value is not None}
        return await fetch_reply(self._nc, subjects.CONFIG_GET, body, timeout=10)

    async def set(
        self,
        agent: str,
        values: dict[str, str | None],
        *,
        expected: int | None = None,
        by: str | None = None,
        instance: str | None = None,
    ) -> dict[str, Any]:
        """Put values; None takes a key away."""
        return await self._ask(
            subjects.CONFIG_SET,
            agent,
            configurations=values,
            expected_revision=expected,
            changed_by=by,
            instance_id=instance,
        )

    async def history(
        self, agent: str, *, limit: int, key: str | None = None, instance: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest `limit` changes, over as many pages as they need."""
        entries: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(entries) < limit:
            page = await self._ask(
                subjects.CONFIG_HISTORY,
                agent,
                limit=limit - len(entries),
                key=key,
                instance_id=instance,
                cursor=cursor,
            )
            entries += page["history"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        return entries

    async def rollback(self, agent: str, revision: int, *, by: str, instance: str | None = None) -> dict[str, Any]:
        """Bring the rows of `revision` back."""
        return await self._ask(subjects.CONFIG_ROLLBACK, agent, revision=revision, changed_by=by, instance_id=instance)

    async def rollout(self, agent: str, body: dict[str, Any]) -> dict[str, Any]:
        """Start, end or show rollouts."""
        return await self._ask(subjects.CONFIG_ROLLOUT, agent, **body)

    async def layers(self) -> dict[str, int]:
        """Every layer that has rows, and its revision."""
        layers: dict[str, int] = (await request(self._nc, subjects.CONFIG_LIST, {}))["layers"]
        return layers

    async def watch(self, agent: str | None, show: Callable[[str], None]) -> None:
        """Show changes as they come, for ever."""

        async def updated(message: Msg) -> None:
            body = orjson.loads(message.data)
            if agent in (None, body["agent_name"]) or body["agent_name"] == subjects.GLOBAL_LAYER:
                show(update_line(body))

        async def applied(message: Msg) -> None:
            show(applied_line(orjson.loads(message.data)))

        await self._nc.subscribe(subjects.CONFIG_UPDATE, cb=updated)
        await self._nc.subscribe(subjects.config_applied(agent or "*"), cb=applied)
        await self._nc.flush()
        show("[dim]watching; Ctrl-C ends it[/]")
        await asyncio.Event().wait()


async def own_rows(caller: Caller, agent: str) -> dict[str, str]:
    """The visible rows of one layer."""
    rows: dict[str, str] = (await caller.get(agent, own=True))["configurations"]
    return rows
