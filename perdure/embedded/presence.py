"""Who is there: the processes that answer `$SRV.PING` (the NATS services protocol)."""

from __future__ import annotations

import asyncio

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client


async def instances(nc: Client, *, wait: float = 0.5, until: str | None = None) -> dict[str, str]:
    """The process name of each instance id that answers within `wait` seconds; ends early when `until` did.

    Empty while NATS is away: nobody can be asked then.
    """
    return {name: said["process"] for name, said in (await described(nc, wait=wait, until=until)).items()}


async def described(nc: Client, *, wait: float = 0.5, until: str | None = None) -> dict[str, dict[str, str]]:
    """The same, with all that the instances say of themselves: `process`, `instance`, `metrics`, …"""
    found: dict[str, dict[str, str]] = {}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    try:
        inbox = await nc.subscribe(nc.new_inbox())
        try:
            await nc.publish("$SRV.PING", b"", reply=inbox.subject)
            while until not in found and (left := deadline - loop.time()) > 0:
                _note(found, (await inbox.next_msg(timeout=left)).data)
        finally:
            await inbox.unsubscribe()
    except TimeoutError:
        pass  # all who answer have
    except nats_errors.Error:
        await asyncio.sleep(max(0.0, deadline - loop.time()))
    return found


def _note(found: dict[str, dict[str, str]], data: bytes) -> None:
    try:
        metadata = orjson.loads(data).get("metadata") or {}
        said = {"process": str(metadata["process"]), **{str(key): str(value) for key, value in metadata.items()}}
        found[str(metadata["instance"])] = said
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return  # a service of someone else: it has no such metadata
