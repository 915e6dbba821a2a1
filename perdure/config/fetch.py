"""Reading one agent's configuration over NATS, however large it is."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from nats.aio.client import Client

from perdure import subjects
from perdure.bus.wire import request
from perdure.errors import InternalError, TooLarge, Unavailable

RESTARTS: Final = 20  # of a read in parts that a newer revision cut short


@dataclass(frozen=True, slots=True)
class Fetched:
    """A reply to `config.get`.

    `held`: keys whose newest value is bad, and why; `values` has their last good one. `stale`: the ConfigManager
    answers from memory, Postgres is away. `rewound`: its database has never seen the revision that we have; it was
    restored or made anew, and counts all the same.
    """

    values: Mapping[str, str]
    revision: int
    held: Mapping[str, str] = field(default_factory=dict)
    stale: bool = False
    rewound: bool = False


def read_reply(reply: Mapping[str, Any], where: str) -> Fetched:
    """The configuration in the body of a reply. Raises `InternalError` when it has none."""
    values, revision = reply.get("configurations"), reply.get("revision")
    if not isinstance(values, dict) or not isinstance(revision, int):
        raise InternalError(f"the reply on {where} has no configurations or no revision")
    return Fetched(
        {str(key): str(value) for key, value in values.items()},
        revision,
        {str(key): str(hold.get("why", "refused")) for key, hold in (reply.get("held") or {}).items()},
        stale=bool(reply.get("stale")),
        rewound=bool(reply.get("rewound")),
    )


async def fetch(
    nc: Client,
    agent: str,
    instance: str,
    *,
    seen: int,
    timeout: float = 5.0,
) -> Fetched:
    """Read the configuration of `agent`, not older than revision `seen`.

    Raises the `ApiError` that the ConfigManager sent, `Unavailable` when there is none, `InternalError` for a reply
    that is no configuration.
    """
    asked = {"agent_name": agent, "instance_id": instance, "min_revision": seen}
    subject = subjects.config_get(agent)
    return read_reply(await fetch_reply(nc, subject, asked, timeout=timeout), subject)


async def fetch_reply(
    nc: Client,
    subject: str,
    asked: Mapping[str, Any],
    *,
    timeout: float = 5.0,
) -> dict[str, Any]:
    """The whole reply to a `config.get`, in parts when it does not fit into one message."""
    try:
        return await request(nc, subject, asked, timeout=timeout)
    except TooLarge as error:
        if "parts" not in error.details:
            raise
    return await _in_parts(nc, subject, asked, timeout)


async def _in_parts(nc: Client, subject: str, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    for _ in range(RESTARTS):
        first = await request(nc, subject, {**asked, "part": 0}, timeout=seconds)
        chunks = [first["chunk"]]
        for number in range(1, first["parts"]):
            piece = await request(nc, subject, {**asked, "part": number}, timeout=seconds)
            if (piece["revision"], piece["parts"]) != (first["revision"], first["parts"]):
                break
            chunks.append(piece["chunk"])
        else:
            whole: dict[str, Any] = orjson.loads(b"".join(b64decode(chunk) for chunk in chunks))
            return whole
    raise Unavailable(f"the configuration on {subject} changed at every attempt to read it; ask again")
