"""Server-sent events: one response for every stream, with a heartbeat and a bound on slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

import orjson
import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from perdure.edge.door import Door
from perdure.errors import ApiError, InvalidRequest, RateLimited

MEDIA_TYPE: Final = "text/event-stream"
PATIENCE: Final = 30.0  # seconds that a reader may leave a piece unread; then the stream ends, and he may come back
PING: Final = b": still here\n\n"

log = structlog.get_logger(__name__)

Pieces = AsyncGenerator[bytes]


def event(data: Any, *, kind: str | None = None, id: str | None = None) -> bytes:  # noqa: A002 -- the format's word
    """One event; `data` is JSON, which has no line breaks, or bytes without any."""
    lines = [] if id is None else [b"id: " + id.encode()]
    if kind is not None:
        lines.append(b"event: " + kind.encode())
    lines.append(b"data: " + (data if isinstance(data, bytes) else orjson.dumps(data, default=str)))
    return b"\n".join(lines) + b"\n\n"


def position(given: str | None, after: str | None) -> tuple[int | None, int | None]:
    """(seq, index) of the last event seen, by `Last-Event-ID` or `?after=`: `7`, or `7.3` for a passing event.

    Raises `InvalidRequest`.
    """
    said = given if given not in (None, "") else after
    if said is None:
        return None, None
    seq, dot, index = said.partition(".")
    if not (seq.isdecimal() and len(seq) < 19 and (index.isdecimal() and len(index) < 19 if dot else True)):
        raise InvalidRequest(f"{said!r} is no event's id: give the id of the last event you have, or leave it out")
    return int(seq), int(index) if dot else None


class EventStream(Response):
    """Sends pieces as they come. What the pieces read is pulled as fast as the reader takes it, no faster.

    Every `gateway_heartbeat` seconds `still` is asked whether the reader is still let in, and a comment goes out.
    """

    media_type = MEDIA_TYPE

    def __init__(self, door: Door, pieces: Pieces, *, still: Callable[[], Awaitable[bool]] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._door = door
        self._pieces = pieces
        self._still = still

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the pieces, the reader or this process end."""
        load = self._door.load
        if load.streams >= load.most_streams:
            load.shed += 1
            await self._pieces.aclose()
            raise RateLimited(f"{load.most_streams} streams are read already; come back later", retry_after=5.0)
        load.streams += 1
        load.requests -= 1  # a stream is not a request under way
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._pieces):
                await self._until_gone(receive, send)
        finally:
            load.streams -= 1
            load.requests += 1

    async def _until_gone(self, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = [asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._door.stopping.wait())]
        try:
            await asyncio.wait([sending, *watching], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and watching[1].done():
                with suppress(asyncio.CancelledError):
                    sending.cancel()
                    await sending
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif sending.done():
                await sending
        finally:
            for task in (sending, *watching):
                task.cancel()
            await asyncio.gather(sending, *watching, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async def put(body: bytes, *, more: bool = True) -> None:
            async with asyncio.timeout(PATIENCE):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        beat = self._door.settings.gateway_heartbeat
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                following = following or asyncio.ensure_future(anext(self._pieces))
                done, _ = await asyncio.wait([following], timeout=beat)
                if not done:
                    if self._still is not None and not await self._still():
                        break
                    await put(PING)
                    continue
                try:
                    piece = following.result()
                except StopAsyncIteration:
                    break
                except ApiError as error:
                    log.info("an event stream ended", action="sse.ended", code=error.code, error=error.message)
                    break
                following = None
                await put(piece)
            await put(b"", more=False)
        except TimeoutError:
            log.info("a reader of events was too slow", action="sse.slow_reader", seconds=PATIENCE)
        finally:
            if following is not None:
                following.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration, ApiError):
                    await following


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
