"""Server-sent events: one response for every stream, with a heartbeat and a bound on slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from perdure.errors import ApiError, InvalidRequest, RateLimited

if TYPE_CHECKING:
    from perdure.edge.door import Door

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
    said = getattr(data, "json", None)  # an event that was read for all who watch its run
    if said is None:
        said = data if isinstance(data, bytes) else orjson.dumps(data, default=str)
    lines.append(b"data: " + said)
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


HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def sent(pieces: bytes) -> Response:
    """A stream whose pieces are all there: they are one answer, which costs no task."""
    response = Response(pieces, headers=HEADERS, media_type=MEDIA_TYPE)
    del response.headers["content-length"]  # in chunks, like any other stream
    return response


class EventStream(Response):
    """Sends pieces as they come. What the pieces read is pulled as fast as the reader takes it, no faster.

    Every `gateway_heartbeat` seconds `still` is asked whether the reader is still let in, and after as long a silence a
    comment goes out. A piece costs no task and no timer: one task beside the stream sees to both, and to slow readers.
    """

    media_type = MEDIA_TYPE

    def __init__(self, door: Door, pieces: Pieces, *, still: Callable[[], Awaitable[bool]] | None = None) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._door = door
        self._pieces = pieces
        self._still = still
        self._sending: float | None = None  # since when the reader has not taken what was sent
        self._sent = 0.0  # when something was sent last

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
        self._sent = asyncio.get_running_loop().time()
        sending = asyncio.ensure_future(self._send(send))
        beating = asyncio.ensure_future(self._beat(send))
        stopping = asyncio.ensure_future(self._door.stopping.wait())
        gone = asyncio.ensure_future(_gone(receive))
        tasks = (sending, beating, stopping, gone)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
            elif not gone.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                if stopping.done() or await beating:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        try:
            async for piece in self._pieces:
                self._sending = clock()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                self._sending, self._sent = None, clock()
        except ApiError as error:
            log.info("an event stream ended", action="sse.ended", code=error.code, error=error.message)
        self._sending = clock()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> bool:
        """Until the reader is too slow (False), or not let in any more (True)."""
        loop = asyncio.get_running_loop()
        beat = self._door.settings.gateway_heartbeat
        asked = loop.time()
        while True:
            silent = beat if self._sending is not None else self._sent + beat - loop.time()
            await asyncio.sleep(min(max(silent, 0.001), PATIENCE))
            now = loop.time()
            if self._sending is not None and now - self._sending >= PATIENCE:
                log.info("a reader of events was too slow", action="sse.slow_reader", seconds=PATIENCE)
                return False
            if self._still is not None and now - asked >= beat:
                asked = now
                try:
                    if not await self._still():
                        return True
                except ApiError as error:  # it cannot be asked now
                    log.info("an event stream ended", action="sse.ended", code=error.code, error=error.message)
                    return True
            if self._sending is None and now - self._sent >= beat:
                self._sent = now
                try:
                    async with asyncio.timeout(PATIENCE):
                        await send({"type": "http.response.body", "body": PING, "more_body": True})
                except TimeoutError:
                    return False


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
