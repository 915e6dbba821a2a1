"""The NATS services protocol (ADR-32): `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS` for every process.

`nats.micro` is not used: it handles requests one at a time and sends `repr` of errors to callers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure.bus.endpoint import Endpoint

NAME: Final = re.compile(r"[A-Za-z0-9_-]+")

log = structlog.get_logger()


class Discovery:
    """Answers for one service. `endpoints` is read at each answer, so it may grow."""

    def __init__(
        self,
        nc: Client,
        *,
        name: str,
        instance_id: str,
        version: str,
        description: str,
        metadata: Callable[[], dict[str, str]],
        endpoints: Iterable[Endpoint],
        details: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"service name {name!r} is not usable: it must match [A-Za-z0-9_-]+")
        self._nc = nc
        self._name = name
        self._id = instance_id
        self._version = version
        self._description = description
        self._metadata = metadata
        self._endpoints = endpoints
        self._details = details  # for those who ask for it by its name
        self._started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Subscribe to the three verbs, for all, for the name and for the instance."""
        for verb, answer in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for address in ("", f".{self._name}", f".{self._name}.{self._id}"):
                callback = self._callback(self._whole_info if verb == "INFO" and address else answer)
                self._subscriptions.append(await self._nc.subscribe(f"$SRV.{verb}{address}", cb=callback))

    async def close(self) -> None:
        """Be found no longer."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            try:
                await subscription.unsubscribe()
            except nats_errors.Error:
                log.debug("the connection is gone already", action="discovery.not_unsubscribed")

    def _callback(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Msg], Any]:
        async def respond(msg: Msg) -> None:
            if msg.reply:
                await self._nc.publish(msg.reply, orjson.dumps(answer()))

        return respond

    def _ping(self) -> dict[str, Any]:
        return self._about("ping")

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {"name": each.name, "subject": each.subject, "queue_group": each.queue, "metadata": each.metadata}
            for each in self._endpoints
        ]
        return {**self._about("info"), "description": self._description, "endpoints": endpoints}

    def _whole_info(self) -> dict[str, Any]:
        return {**self._details(), **self._info()}

    def _stats(self) -> dict[str, Any]:
        return {**self._about("stats"), "started": self._started, "endpoints": [_stats(e) for e in self._endpoints]}

    def _about(self, verb: str) -> dict[str, Any]:
        return {
            "type": f"io.nats.micro.v1.{verb}_response",
            "name": self._name,
            "id": self._id,
            "version": self._version,
            "metadata": self._metadata(),
        }


def _stats(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "subject": endpoint.subject,
        "queue_group": endpoint.queue,
        "num_requests": endpoint.requests,
        "num_errors": endpoint.errors,
        "last_error": endpoint.last_error,
        "processing_time": endpoint.processing_time,
        "average_processing_time": endpoint.processing_time // max(1, endpoint.requests),
        "data": endpoint.data() if endpoint.data is not None else None,
    }
