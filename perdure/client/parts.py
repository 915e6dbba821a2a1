"""Values that one NATS message does not carry, sent and fetched in parts."""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import Any, Final

import orjson
from nats.aio.client import Client as Nats

from perdure import subjects
from perdure.bus import wire
from perdure.errors import InternalError, TooLarge
from perdure.settings import Settings

PART: Final = 512 * 1024
AT_ONCE: Final = 4
PATIENCE: Final = 30.0  # seconds for a request that carries, or stands for, much


async def put(nats: Nats, data: bytes, settings: Settings) -> bytes:
    """Put a request's body in parts; the body that stands for it. Raises `TooLarge` over `PERDURE_MAX_PAYLOAD`."""
    if len(data) > settings.max_payload:
        raise TooLarge(f"the request has {len(data)} bytes; the limit is {settings.max_payload} (PERDURE_MAX_PAYLOAD)")
    size = min(PART, nats.max_payload - 1024)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(piece: bytes) -> str:
        async with gate:
            return str((await wire.request(nats, subjects.PAYLOAD_PUT, piece, timeout=PATIENCE))["part"])

    ids = await asyncio.gather(*map(send, pieces))
    return orjson.dumps({"parts": ids, "hash": blake2b(data, digest_size=32).hexdigest()})


async def get(nats: Nats, run_id: str, what: str, seq: int | None) -> Any:
    """A value of a run (`task`, `output`, `error`), or with `seq` of one of its steps. Raises `NotFound`."""
    asked: dict[str, Any] = {"run_id": run_id, "what": what, "seq": seq}
    slices: list[str] = []
    size = None
    while asked.get("offset", 0) is not None:
        reply = await wire.request(nats, subjects.PAYLOAD_GET, asked, timeout=PATIENCE)
        if size is not None and reply["size"] != size:
            raise InternalError(f"the {what} of run {run_id} changed while it was read; ask again")
        size = reply["size"]
        slices.append(reply["text"])
        asked["offset"] = reply.get("next")
    return orjson.loads("".join(slices))
