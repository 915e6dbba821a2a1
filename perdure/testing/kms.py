"""A key service for tests, as a process of its own; its hook is `PERDURE_ENCRYPTION_KMS=perdure.testing.kms:hook`.

`python -m perdure.testing.kms` prints its address and serves until it is ended; `PERDURE_TESTING_KMS` tells the hook
where that is. Its keys come from a fixed seed: one that is started again opens what the one before has wrapped.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import web

from perdure.store.kms import KeyRefused
from perdure.testing.fake_server import FakeServer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from perdure.settings import Settings

VARIABLE: Final = "PERDURE_TESTING_KMS"


class FakeKms(FakeServer):
    """`async with FakeKms() as fake:` serves on `fake.url`.

    `POST /wrap` and `/unwrap` are what the hook asks; `POST /rotate` makes a new key, `POST /disable/{id}` and
    `/enable/{id}` decide whether one may be used; `GET /calls` counts what was asked.
    """

    def __init__(self) -> None:
        self.url = ""
        self.calls: Counter[str] = Counter()
        self.disabled: set[str] = set()
        self._newest = 1

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.add_routes(
            [
                web.post("/wrap", self._wrap),
                web.post("/unwrap", self._unwrap),
                web.post("/rotate", self._rotate),
                web.post("/disable/{key}", self._disable),
                web.post("/enable/{key}", self._enable),
                web.get("/calls", self._count),
            ]
        )
        return app

    def listening(self, address: str) -> None:
        """It has an address now."""
        self.url = f"http://{address}"

    async def _wrap(self, request: web.Request) -> web.Response:
        self.calls["wrap"] += 1
        said = await request.json()
        name, nonce = f"kms-{self._newest}", os.urandom(12)
        if name in self.disabled:
            return web.json_response({"error": f"{name} is disabled"}, status=403)
        wrapped = nonce + _cipher(name).encrypt(nonce, base64.b64decode(said["key"]), said["tenant"].encode())
        return web.json_response({"key_id": name, "wrapped": base64.b64encode(wrapped).decode()})

    async def _unwrap(self, request: web.Request) -> web.Response:
        self.calls["unwrap"] += 1
        said = await request.json()
        name, wrapped = said["key_id"], base64.b64decode(said["wrapped"])
        if name in self.disabled or name not in {f"kms-{number}" for number in range(1, 100)}:
            return web.json_response({"error": f"{name} is disabled, or there is none of that name"}, status=403)
        try:
            key = _cipher(name).decrypt(wrapped[:12], wrapped[12:], said["tenant"].encode())
        except Exception:  # noqa: BLE001 -- whatever is wrong with what was sent
            return web.json_response({"error": "it was not wrapped so"}, status=403)
        return web.json_response({"key": base64.b64encode(key).decode()})

    async def _rotate(self, _request: web.Request) -> web.Response:
        self._newest += 1
        return web.json_response({"key_id": f"kms-{self._newest}"})

    async def _disable(self, request: web.Request) -> web.Response:
        self.disabled.add(request.match_info["key"])
        return web.json_response({})

    async def _enable(self, request: web.Request) -> web.Response:
        self.disabled.discard(request.match_info["key"])
        return web.json_response({})

    async def _count(self, _request: web.Request) -> web.Response:
        return web.json_response(self.calls)


def _cipher(name: str) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 -- on demand

    return AESGCM(hashlib.sha256(f"a seed for tests {name}".encode()).digest())


class HttpKeyService:
    """The hook's side: a `perdure.store.kms.KeyService` over HTTP."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def wrap(self, key: bytes, tenant: str) -> tuple[str, bytes]:
        """See `KeyService`."""
        said = await self._ask("wrap", {"key": base64.b64encode(key).decode(), "tenant": tenant})
        return said["key_id"], base64.b64decode(said["wrapped"])

    async def unwrap(self, key_id: str, wrapped: bytes, tenant: str) -> bytes:
        """See `KeyService`."""
        body = {"key_id": key_id, "wrapped": base64.b64encode(wrapped).decode(), "tenant": tenant}
        return base64.b64decode((await self._ask("unwrap", body))["key"])

    async def _ask(self, what: str, body: dict[str, str]) -> dict[str, Any]:
        async with aiohttp.ClientSession() as http, http.post(f"{self._url}/{what}", json=body) as reply:
            said: dict[str, Any] = await reply.json()
            if reply.status == 403:
                raise KeyRefused(said["error"])
            reply.raise_for_status()
            return said


def hook(settings: Settings) -> HttpKeyService:  # noqa: ARG001 -- a hook is given them
    """What `PERDURE_ENCRYPTION_KMS` names. Raises `ValueError` when nobody said where the service is."""
    if not (url := os.environ.get(VARIABLE)):
        raise ValueError(f"{VARIABLE} is not set")
    return HttpKeyService(url)


async def _serve(port: int) -> None:
    fake = FakeKms()
    await fake.start(port)
    print(fake.url, flush=True)  # noqa: T201 -- its one word
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
