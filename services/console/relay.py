"""Requests of the page, passed on to the gateway as they are. One origin for page and API: no CORS, no key in a URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from yarl import URL

# What says something about one connection, or about the address that was asked, is not passed on.
_UP: Final = frozenset(
    {"accept", "authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "x-request-id"}
)
_DOWN: Final = frozenset({"content-type", "cache-control", "retry-after", "x-request-id", "www-authenticate"})
_LARGEST: Final = 4 * 1024 * 1024  # bytes of one request's body
_SILENCE: Final = 90.0  # seconds without a byte after which the gateway is given up


class Relay:
    """Asks the gateway at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self.stopping = asyncio.Event()

    async def close(self) -> None:
        """Close the connections to the gateway."""
        if self._session is not None:
            await self._session.close()

    async def pass_on(self, request: Request, *, via: str | None = None) -> Response:
        """The gateway's answer, sent on as it comes; 413 for a body too large, 503 while the gateway is away.

        `via` is the address of who asks, told to the gateway when the request comes from another machine.
        """
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        try:
            body = await _body(request)
        except ValueError as error:
            return _problem(413, "too_large", str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        # Encoded as it came, so that an escaped slash stays within its segment.
        path = request.scope["raw_path"].decode("ascii", "replace").removeprefix("/api")
        target = URL(f"{self._url}{path}", encoded=True).with_query(request.url.query)
        headers = {name: value for name, value in request.headers.items() if name in _UP}
        if via is not None:
            headers["x-forwarded-for"] = via
        try:
            answer = await self._session.request(
                request.method, target, data=body or None, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError):
            return _problem(503, "unavailable", f"the gateway at {self._url} does not answer; start it, then reload")
        said = {name: value for name, value in answer.headers.items() if name.lower() in _DOWN}
        return StreamingResponse(self._pieces(answer), answer.status, said)

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        stopping = asyncio.ensure_future(self.stopping.wait())
        try:
            while True:
                reading = asyncio.ensure_future(answer.content.readany())
                await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    with suppress(asyncio.CancelledError):
                        await reading
                    return
                piece = reading.result()
                if not piece:
                    return
                yield piece
        finally:
            stopping.cancel()
            answer.close()


async def _body(request: Request) -> bytes:
    """The whole body. Raises `ValueError` when it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST:
            raise ValueError(f"the body is over {_LARGEST} bytes: send it to the gateway itself")
    return bytes(body)


def _problem(status: int, code: str, detail: str) -> Response:
    said = {"type": f"urn:perdure:problem:{code}", "status": status, "code": code, "detail": detail}
    return JSONResponse(said, status, media_type="application/problem+json")
