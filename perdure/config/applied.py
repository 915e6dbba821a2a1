"""What an agent process says of each change: `config.applied.<agent>`, and the same again when it is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.config.snapshot import AgentConfig

log = structlog.get_logger()


class Applied:
    """The voice of one instance of one agent."""

    def __init__(self, nats: Client, agent: str, instance: str) -> None:
        self._nats = nats
        self._agent = agent
        self._instance = instance
        self._last = b""
        self.applied = self.rejected = 0

    async def tell(
        self,
        snapshot: AgentConfig,
        errors: Mapping[str, str],
        *,
        waiting: Collection[str] = (),
        rejected: bool = False,
    ) -> None:
        """Publish what came of a change: `rejected` when any key is held, with why; `waiting` keys need a restart."""
        for key, why in snapshot.held.items():
            log.warning(
                "a bad value is held back",
                action="config.held",
                agent=self._agent,
                key=key,
                revision=snapshot.revision,
                why=why,
            )
        status = "rejected" if rejected or snapshot.held else "applied"
        if status == "rejected":
            self.rejected += 1
        else:
            self.applied += 1
        body: dict[str, Any] = {
            "agent_name": self._agent,
            "instance_id": self._instance,
            "revision": snapshot.revision,
            "status": status,
            "errors": {**snapshot.held, **errors},
        }
        if waiting:
            body["restart"] = sorted(waiting)
        self._last = orjson.dumps(body)
        await self._publish(subjects.config_applied(self._agent), self._last)

    async def answer(self, message: Msg) -> None:
        """Say the last thing again to whoever asks on `config.state.<agent>`."""
        if message.reply and self._last:
            await self._publish(message.reply, self._last)

    async def _publish(self, subject: str, data: bytes) -> None:
        try:
            await self._nats.publish(subject, data)
        except nats_errors.Error as error:
            log.info("config.applied was not sent", action="config.applied_lost", error=str(error))
