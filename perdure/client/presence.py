"""Which agent processes are there: they answer `$SRV.STATS` (the NATS services protocol)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client as Nats

from perdure.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Replica:
    """A process that runs an agent: who it is, what it stands on, how it is (`ok`, `warning`, `critical`, `unknown`).

    `findings` are the texts of the health checks that are not ok; `started` is ISO 8601 in UTC.
    """

    agent: str
    instance: str
    config_revision: int | None
    health: str
    findings: dict[str, str]
    version: str
    started: str


async def replicas(nats: Nats, agent: str | None = None, *, wait: float = 0.5, first: bool = False) -> list[Replica]:
    """The replicas (of `agent`) that answer within `wait` seconds; with `first`, at most one, as soon as it answers.

    Raises `Unavailable` while NATS is away.
    """
    found: dict[tuple[str, str], Replica] = {}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    try:
        inbox = await nats.subscribe(nats.new_inbox())
        try:
            await nats.publish("$SRV.STATS" if agent is None else f"$SRV.STATS.{agent}", b"", reply=inbox.subject)
            while (left := deadline - loop.time()) > 0 and not (first and found):
                message = await inbox.next_msg(timeout=left)
                if (message.headers or {}).get("Status") == "503":
                    break  # nobody listens
                if (replica := _read(message.data)) is not None:
                    found[replica.agent, replica.instance] = replica
        finally:
            await inbox.unsubscribe()
    except TimeoutError:
        pass  # all who answer have
    except nats_errors.Error as error:
        raise Unavailable("NATS is away: nobody can be asked who is there") from error
    return [found[key] for key in sorted(found)]


def _read(data: bytes) -> Replica | None:
    """A replica's answer; None for services that are no agents."""
    try:
        said = orjson.loads(data)
        metadata = said["metadata"]
        agent, instance = str(metadata["agent"]), str(metadata["instance"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    revision = str(metadata.get("config_revision") or "")
    status, findings = health_of(said)
    return Replica(
        agent=agent,
        instance=instance,
        config_revision=int(revision) if revision.isdecimal() else None,
        health=status,
        findings=findings,
        version=str(said.get("version") or ""),
        started=str(said.get("started") or ""),
    )


def health_of(said: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """What the endpoint `health` carries in an answer to `$SRV.STATS`: the status, and what is not ok by its check."""
    for endpoint in said.get("endpoints") or ():
        report = endpoint.get("data") if endpoint.get("name") == "health" else None
        if isinstance(report, dict):
            checks = report.get("checks") or {}
            bad = {name: str(each.get("text")) for name, each in checks.items() if each.get("status") != "ok"}
            return str(report.get("status")), bad
    return "unknown", {}
