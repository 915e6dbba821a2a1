"""Values that one message does not carry: put and read in parts.

A request (`run.start`, `run.ask`, `run.signal`) whose body is too large for one message is put in parts first
(`payload.put`, the bytes as they are), then sent as `{"parts": [ids], "hash": hash of the whole}`.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any, Final

from perdure.bus.service import Request
from perdure.engine import runs
from perdure.errors import InvalidRequest, NotFound, TooLarge
from perdure.messages import Parts, PayloadGet, parse
from perdure.settings import Settings
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import hash_of, vault_of

_SQL = load_queries("payloads.sql")

SLICE: Final = 200_000  # characters of a value in one reply
AT_ONCE: Final = 4  # large requests that are put together at a time
_IN_PARTS = re.compile(rb'\s*\{\s*"parts"\s*:')


class Payloads:
    """`payload.put`, `payload.get`, and requests that came in parts."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._assembling = asyncio.Semaphore(AT_ONCE)
        self._opened: OrderedDict[tuple[str, str, int | None], str] = OrderedDict()

    async def put(self, request: Request) -> dict[str, Any]:
        """`payload.put`: keep these bytes for an hour; their id."""
        if not request.data:
            raise InvalidRequest("there is nothing to put: send the bytes of the part as the body")
        body = await vault_of(self._pool).seal_part(request.data)
        part = hash_of(body)
        await self._pool.execute(_SQL["put"], [f"part-{part}"], [len(body)], [body], [], [])
        return {"status": "success", "part": part, "size": len(request.data)}

    async def whole(self, data: bytes) -> bytes:
        """The body of a request, put together if it came in parts. Raises `InvalidRequest`, `NotFound`, `TooLarge`."""
        if not _IN_PARTS.match(data):
            return data
        said = parse(Parts, data)
        async with self._assembling:
            found: dict[str, bytes] = {}
            size = 0
            for part in dict.fromkeys(said.parts):
                records = await self._pool.fetch(_SQL["read"], [f"part-{part}"])
                if not records or hash_of(records[0]["body"]) != part:
                    raise NotFound(f"there is no part {part!r}: put it again (payload.put), it is kept for an hour")
                found[part] = await vault_of(self._pool).open_part(records[0]["body"])
                size += len(found[part]) * said.parts.count(part)
                if size > self._settings.max_payload:
                    raise TooLarge(f"the request has over {self._settings.max_payload} bytes (PERDURE_MAX_PAYLOAD)")
            body = b"".join(found[part] for part in said.parts)
        if hash_of(body) != said.hash:
            raise InvalidRequest("field 'hash': the parts together have another one (BLAKE2b, 256 bits, hex)")
        return body

    async def get(self, request: Request) -> dict[str, Any]:
        """`payload.get`: a slice of the JSON text of a run's value, and where the next one begins."""
        said = parse(PayloadGet, request.data)
        key = (said.run_id, said.what, said.seq)
        text = self._opened.get(key) if said.offset else None
        if text is None:
            text = await runs.value_of(self._pool, said.run_id, said.what, said.seq)
        if text is None:
            raise NotFound(f"run {said.run_id} has no {said.what}", run_id=said.run_id)
        end = said.offset + SLICE
        if end < len(text):
            self._keep(key, text)
        else:
            self._opened.pop(key, None)
        more = {"next": end} if end < len(text) else {}
        return {"status": "success", "run_id": said.run_id, "text": text[said.offset : end], "size": len(text), **more}

    def _keep(self, key: tuple[str, str, int | None], text: str) -> None:
        """A reader comes back for the next slice; what is kept has a bound."""
        self._opened[key] = text
        self._opened.move_to_end(key)
        while len(self._opened) > 1 and sum(map(len, self._opened.values())) > self._settings.max_payload:
            self._opened.popitem(last=False)
