"""A run's events from the first to the last: the stream for what was, a subscription for what comes, the journal for
what both have lost.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

from nats import errors as nats_errors
from nats.aio.client import Client as Nats

from perdure.client.connection import AWAY, Connection
from perdure.client.journal import end_event, step_event
from perdure.client.live import Reader, parsed
from perdure.client.stream import StreamReader
from perdure.client.types import TERMINAL, TERMINAL_EVENTS, RunEvent
from perdure.errors import Unavailable
from perdure.store.vault import Vault

SILENCE: Final = 1.0  # seconds without an event, after which the run is looked at
LONGEST_SILENCE: Final = 15.0  # the same, for a run of which nothing new was found the last times
LAST_WORDS: Final = 0.2  # the same, once the run is known to have ended: its last event may be under way
RETRY: Final = 0.2
STORED_WITHIN: Final = 0.2  # the stream stores a moment after watchers are told; it has an event by then, or never
REMEMBERED: Final = 20_000  # keys of events seen; the stream keeps 10,000 a run

Key = tuple[int, Any, str, str]


async def follow(
    connection: Connection,
    run_id: str,
    *,
    after: int | None = None,
    index: int | None = None,
    known: Mapping[str, Any] | None = None,
) -> AsyncGenerator[RunEvent]:
    """See `RunHandle.events`."""
    nats = await connection.nats()
    watch = _Watch(connection, nats, run_id, await connection.vault(), after, index)
    try:
        async with aclosing(watch.events(known)) as events:
            async for event in events:
                yield event
    except nats_errors.Error as error:
        raise Unavailable(f"the connection was closed while run {run_id} was watched") from error


class _Watch:
    """What one watcher has seen of a run."""

    def __init__(
        self,
        connection: Connection,
        nats: Nats,
        run_id: str,
        vault: Vault,
        after: int | None = None,
        index: int | None = None,
    ) -> None:
        self._connection = connection
        self._vault = vault
        self._nats = nats
        self._run_id = run_id
        self._stream = StreamReader(nats, connection.gets, run_id)
        self._seen: OrderedDict[Key, None] = OrderedDict()
        self._last = after or 0  # seq of the last journaled event
        self._after = after  # what the reader has seen before, until the replay is over
        self._after_index = index
        self._reconnects = nats.stats["reconnects"]
        self._gap = True  # between what the stream has given and the first event that arrives
        self._ended = False
        self._end_seq: int | None = None  # of the end that it had when this watch began
        self._silence = SILENCE
        self._replaying = True
        self._over = False

    async def events(self, known: Mapping[str, Any] | None) -> AsyncGenerator[RunEvent]:
        """Every event once, until the terminal one."""
        run = known if known is not None else await self._connection.look(self._run_id)
        self._ended = run is not None and run["status"] in TERMINAL
        if run is not None and self._is_over(run):
            return
        if run is not None and self._ended:
            self._end_seq = run.get("end_seq")
            async for event in self._replay():  # what it comes to needs no subscription
                yield event
            if self._over:
                return
        # Subscribed before the stream is read, so that nothing falls in between.
        live = await self._connection.live.watch(self._nats, self._run_id, self._vault)
        try:
            async for event in self._replay():
                yield event
            self._replaying = False
            while not self._over:
                async for event in self._next(live):
                    yield event
        finally:
            await self._connection.live.leave(self._nats, self._run_id, live)

    async def _replay(self) -> AsyncGenerator[RunEvent]:
        """What the stream has stored and was not read yet."""
        end: RunEvent | None = None
        late: list[RunEvent] = []  # passing events that were stored after an end: dropped if it was the last
        async for event in self._whole(self._stored()):
            if end is not None and not is_journaled(event):
                late.append(event)
                continue
            end = event if event["type"] in TERMINAL_EVENTS else None
            for each in (*late, event):
                yield each
            late.clear()
        self._over = end is not None and await self._is_last(end)
        if not self._over:
            for each in late:
                yield each

    async def _next(self, live: Reader) -> AsyncGenerator[RunEvent]:
        """What comes next, or what there is to be found after a silence."""
        try:
            event = await live.next(LAST_WORDS if self._ended else self._silence)
        except TimeoutError:
            source = self._after_silence()
            self._silence = max(SILENCE, min(self._silence * 2, LONGEST_SILENCE))
        else:
            source = self._arrived(event)
            self._silence = SILENCE
        async for event in self._whole(source):
            self._silence = SILENCE
            yield event
            if await self._is_last(event):
                self._over = True
                return

    async def _stored(self) -> AsyncGenerator[RunEvent]:
        while batch := await self._stream.read():
            for data in batch:
                for event in parsed(data):
                    yield await self._opened(event)
            if not self._stream.more:
                return

    async def _arrived(self, event: RunEvent) -> AsyncGenerator[RunEvent]:
        reconnects = self._nats.stats["reconnects"]
        if self._gap or reconnects != self._reconnects:
            # What was said before we were there, or while we were away, comes before what is said now.
            self._gap, self._reconnects = False, reconnects
            if _key(event) not in self._seen and (self._seen or event["type"] != "run.started"):
                async for stored in self._stored_before(event):
                    yield stored
        yield event

    async def _stored_before(self, event: RunEvent) -> AsyncGenerator[RunEvent]:
        """What the stream has, once it has `event`, too: what was said before that is stored by then."""
        found, pause = False, 0.0
        while not found and pause < STORED_WITHIN:
            await asyncio.sleep(pause)
            async for stored in self._stored():
                found = found or _key(stored) == _key(event)
                yield stored
            pause = max(pause * 2, 0.002)

    async def _opened(self, event: RunEvent) -> RunEvent:
        return await self._vault.open_event(event)  # type: ignore[return-value,arg-type]  # the same fields

    async def _after_silence(self) -> AsyncGenerator[RunEvent]:
        """What arrives nowhere is looked for: in the stream, and at last in the journal."""
        self._reconnects = self._nats.stats["reconnects"]
        knew = self._ended
        async for event in self._stored():
            yield event
        run = await self._connection.look(self._run_id)
        if run is None:
            return
        self._ended = run["status"] in TERMINAL
        self._over = self._is_over(run)
        if self._ended and knew and not self._over:
            run = await self._journal()
            for step in run["steps"]:
                yield step_event(run, step)
            if (end := end_event(run, run.get("end_seq") or self._last + 1)) is not None:
                yield end

    async def _whole(self, source: AsyncGenerator[RunEvent]) -> AsyncGenerator[RunEvent]:
        """Events not seen before; where a journaled one is missing before another, it is told from the journal."""
        async for event in source:
            if self._is_new(event) and not self._behind(event):
                if is_journaled(event):
                    if event["seq"] > self._last + 1:
                        async for missed in self._missed(event["seq"]):
                            yield missed
                    if event["type"] not in TERMINAL_EVENTS:
                        self._last = max(self._last, event["seq"])
                yield event

    async def _missed(self, before: int) -> AsyncGenerator[RunEvent]:
        # Told from nowhere else: whoever comes back with a later seq would never see them.
        while (run := await self._journal())["status"] == "unknown":
            await asyncio.sleep(RETRY)
        for step in run["steps"]:
            if step["seq"] < before and self._is_new(event := step_event(run, step)):
                self._last = max(self._last, step["seq"])
                yield event

    async def _journal(self) -> dict[str, Any]:
        """The run with its steps after the last one seen; with none while the platform cannot be asked."""
        try:
            return await self._connection.details(self._run_id, after=self._last)
        except AWAY:
            return {"status": "unknown", "steps": []}

    def _is_new(self, event: RunEvent) -> bool:
        key = _key(event)
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _behind(self, event: RunEvent) -> bool:
        """Whether the reader has seen it before he came back."""
        if self._after is None or not (self._replaying or is_journaled(event)):
            return False
        if event["seq"] != self._after or is_journaled(event) or self._after_index is None:
            return event["seq"] <= self._after
        index = event["data"].get("index")
        return isinstance(index, int) and index <= self._after_index

    def _is_over(self, run: Mapping[str, Any]) -> bool:
        """Whether the reader had the end before he came back."""
        end_seq: int | None = run.get("end_seq") if run["status"] in TERMINAL else None
        return self._after is not None and end_seq is not None and end_seq <= self._after

    async def _is_last(self, event: RunEvent) -> bool:
        """Whether `event` is the run's end, and not one that the run was brought back from (`run.resume`)."""
        if event["type"] not in TERMINAL_EVENTS:
            return False
        if event["seq"] == self._end_seq:
            return True
        run = await self._connection.look(self._run_id)
        return run is None or f"run.{run['status']}" == event["type"]


def _key(event: RunEvent) -> Key:
    # After a process was lost, its successor's passing events count from index 1 again: the time tells them apart.
    return event["seq"], event["data"].get("index"), event["type"], event["time"]


def is_journaled(event: RunEvent) -> bool:
    """Whether the event's seq is its own: a step, an event of the workflow, the end."""
    return event["type"] in TERMINAL_EVENTS or not (event["type"].startswith("run.") or "index" in event["data"])
