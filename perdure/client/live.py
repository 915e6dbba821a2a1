"""Events of runs as they come: one subscription of NATS for a run, however many watch it, each event read once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, cast

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.client.types import RunEvent
from perdure.store.vault import Vault

PENDING: Final = 4096  # events that wait for a slow reader; past that he is told from the stream and the journal
PENDING_BYTES: Final = 8 * 1024 * 1024


class Told(dict[str, Any]):
    """An event that all who watch its run share; nobody changes it. `json` is the same as bytes of one line."""

    __slots__ = ("json",)

    def __init__(self, event: RunEvent, json: bytes) -> None:
        super().__init__(event)
        self.json = json


class Live:
    """What comes now, for all who watch over one connection."""

    def __init__(self) -> None:
        self._feeds: dict[str, _Feed] = {}
        self._lock = asyncio.Lock()

    async def watch(self, nats: Nats, run_id: str, vault: Vault) -> Reader:
        """A reader of what comes from now on; `leave` ends it."""
        async with self._lock:
            feed = self._feeds.get(run_id)
            if feed is None:
                feed = _Feed(vault)
                await feed.open(nats, run_id)
                self._feeds[run_id] = feed
            reader = Reader()
            feed.readers.add(reader)
            return reader

    async def leave(self, nats: Nats, run_id: str, reader: Reader) -> None:
        """The reader is not needed any more."""
        async with self._lock:
            feed = self._feeds.get(run_id)
            if feed is not None:
                feed.readers.discard(reader)
                if not feed.readers:
                    del self._feeds[run_id]
                    await feed.close(nats)

    def end(self) -> None:
        """The connection is closed: whoever waits is told."""
        for feed in self._feeds.values():
            for reader in feed.readers:
                reader.end()


class Reader:
    """What has come for one of those who watch, and waits until he takes it."""

    def __init__(self) -> None:
        self._ready: deque[tuple[int, RunEvent]] = deque()
        self._bytes = 0
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._ready)

    def put(self, size: int, event: RunEvent) -> None:
        """One more; it is left out when too many wait."""
        if len(self._ready) < PENDING and self._bytes < PENDING_BYTES:
            self._ready.append((size, event))
            self._bytes += size
            self._wake()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self, timeout: float) -> RunEvent:
        """The next event. Raises `TimeoutError` after so many seconds, and `ConnectionClosedError`."""
        if not self._ready:
            if self._ended:
                raise nats_errors.ConnectionClosedError
            loop = asyncio.get_running_loop()
            self._waiting = waiting = loop.create_future()
            timer = loop.call_later(timeout, self._wake)
            try:
                await waiting
            finally:
                timer.cancel()
                self._waiting = None
            if not self._ready:
                if self._ended:
                    raise nats_errors.ConnectionClosedError
                raise TimeoutError
        size, event = self._ready.popleft()
        self._bytes -= size
        return event


class _Feed:
    """One run."""

    def __init__(self, vault: Vault) -> None:
        self.readers: set[Reader] = set()
        self._vault = vault
        self._subscription: Subscription | None = None

    async def open(self, nats: Nats, run_id: str) -> None:
        self._subscription = await nats.subscribe(
            subjects.run_events(run_id),
            cb=self._arrived,
            pending_msgs_limit=PENDING,
            pending_bytes_limit=PENDING_BYTES,
        )

    async def close(self, nats: Nats) -> None:
        if self._subscription is not None and not nats.is_closed:
            await self._subscription.unsubscribe()

    async def _arrived(self, message: Msg) -> None:
        data = message.data
        for event in parsed(data):
            opened = cast("RunEvent", await self._vault.open_event(cast("dict[str, Any]", event)))
            plain = opened is event and b"\n" not in data
            told = cast("RunEvent", Told(opened, data if plain else orjson.dumps(opened)))
            for reader in self.readers:
                reader.put(len(data), told)


def parsed(data: bytes) -> Iterator[RunEvent]:
    """The event of a message; none when somebody has published something else there."""
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    if (
        isinstance(event, dict)
        and isinstance(event.get("seq"), int)
        and isinstance(event.get("type"), str)
        and isinstance(event.get("time"), str)
        and isinstance(event.get("data"), dict)
    ):
        yield cast("RunEvent", event)
