"""The events of runs that have ended, ready to be sent: what one read of the event stream gives, kept for a moment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nats import errors as nats_errors
from nats.aio.client import Client as Nats

from perdure.client.events import is_journaled
from perdure.client.live import Told, parsed
from perdure.client.stream import Gets, StreamReader
from perdure.client.types import TERMINAL, TERMINAL_EVENTS, RunEvent
from perdure.edge import sse
from perdure.settings import Settings
from perdure.store.sealing import vault_for
from perdure.store.vault import Vault

FINAL: Final = frozenset({"completed", "cancelled"})
"""States that no run leaves; nobody adds an event to those of one that is here."""
KEPT_FOR: Final = 10.0  # seconds: so long is a run still told of that somebody has deleted
LARGEST: Final = 64 * 1024  # bytes of one run's events; more than that is sent piece by piece
MOST: Final = 8 * 1024 * 1024  # bytes of all


@dataclass(frozen=True, slots=True)
class Ending:
    """The events of a run that has ended, from the first to the last."""

    agent: str
    end_seq: int
    seqs: Sequence[int]
    pieces: Sequence[bytes]

    def after(self, seq: int | None) -> bytes:
        """Those that come after a seq, as they are sent."""
        if seq is None:
            return b"".join(self.pieces)
        return b"".join(piece for at, piece in zip(self.seqs, self.pieces, strict=True) if at > seq)


class Endings:
    """Reads and keeps them. Who may see a run is asked before, each time."""

    def __init__(self, nats: Nats, settings: Settings) -> None:
        self._nats = nats
        self._settings = settings
        self._gets = Gets()
        self._vault: Vault | None = None
        self._kept: OrderedDict[str, tuple[float, int, Ending]] = OrderedDict()
        self._bytes = 0

    def kept(self, run_id: str) -> Ending | None:
        """The events of a run that cannot have any more, if they were read a moment ago."""
        found = self._kept.get(run_id)
        if found is None or asyncio.get_running_loop().time() - found[0] > KEPT_FOR:
            return None
        return found[2]

    async def read(self, run: Mapping[str, Any]) -> Ending | None:
        """The events of `run`, as it was just looked up. None when it has not ended, and when one read of the stream
        does not have them all, in their order, without a gap or a double: then `RunHandle.events` finds what is there.
        """
        run_id, end_seq = str(run["run_id"]), run["end_seq"]
        if run["status"] not in TERMINAL or end_seq is None:
            return None
        if self._vault is None:
            self._vault = await vault_for(self._settings)
        reader = StreamReader(self._nats, self._gets, run_id)
        try:
            stored = await reader.read()
        except nats_errors.Error:
            return None
        if reader.more or sum(map(len, stored)) > LARGEST:
            return None
        events = whole([await _opened(self._vault, data) for data in stored], end_seq)
        if events is None:
            return None
        pieces = [sse.event(event, kind=event["type"], id=str(event["seq"])) for event in events]
        ending = Ending(run["agent"], end_seq, [event["seq"] for event in events], pieces)
        if run["status"] in FINAL:
            self._keep(run_id, ending)
        return ending

    def _keep(self, run_id: str, ending: Ending) -> None:
        self._drop(run_id)
        size = sum(map(len, ending.pieces))
        self._kept[run_id] = (asyncio.get_running_loop().time(), size, ending)
        self._bytes += size
        while self._bytes > MOST:
            self._drop(next(iter(self._kept)))

    def _drop(self, run_id: str) -> None:
        _, size, _ = self._kept.pop(run_id, (0.0, 0, None))
        self._bytes -= size


def whole(events: Sequence[RunEvent | None], end_seq: int) -> list[RunEvent] | None:
    """The events up to the end, if these are all of them: each seq of the journal once and in its order."""
    found: list[RunEvent] = []
    passed: set[tuple[int, Any, str, str]] = set()
    last = 0
    for event in events:
        if event is None:
            continue
        if is_journaled(event):
            if event["seq"] != last + 1 or last == end_seq:
                return None
            last = event["seq"]
            if (event["type"] in TERMINAL_EVENTS) != (last == end_seq):
                return None
        elif last == end_seq:
            continue  # it passed by while the run ended
        else:
            key = (event["seq"], event["data"].get("index"), event["type"], event["time"])
            if key in passed:
                continue
            passed.add(key)
        found.append(event)
    return found if last == end_seq else None


async def _opened(vault: Vault, data: bytes) -> RunEvent | None:
    """A stored event, None for what is none."""
    for event in parsed(data):
        opened: RunEvent = await vault.open_event(event)  # type: ignore[arg-type,assignment]  # the same fields
        if opened is event and b"\n" not in data:
            return Told(event, data)  # type: ignore[return-value]  # an event, with the bytes it came in
        return opened
    return None
