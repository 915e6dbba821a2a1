"""The client's one connection to NATS, made on first use, and requests on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
import structlog
from nats.aio.client import Client as Nats

from perdure.bus import wire
from perdure.bus.connection import connect
from perdure.client import parts
from perdure.client.live import Live
from perdure.client.stream import Gets
from perdure.errors import InternalError, InvalidRequest, RateLimited, Unavailable
from perdure.settings import Settings, load_settings
from perdure.store.sealing import vault_for
from perdure.store.vault import Vault

ATTEMPTS: Final = 4
FIRST_PAUSE: Final = 0.1
INSIST_FOR: Final = 5.0  # seconds after which a request is not made again
LOOK_TIMEOUT: Final = 2.0
STEPS_PAGE: Final = 1000
SPARE: Final = 1024  # bytes of a message that are not a request's
AWAY: Final = (Unavailable, RateLimited, InternalError)
"""What a request meets while a part of the platform restarts; asking again later may help."""

log = structlog.get_logger(__name__)
_looks: set[asyncio.Task[None]] = set()


def encoded(payload: Mapping[str, Any]) -> bytes:
    """A request as JSON. Raises `InvalidRequest` naming the field that cannot travel."""
    try:
        return orjson.dumps(payload)
    except TypeError:
        for name, value in payload.items():
            try:
                orjson.dumps(value)
            except TypeError as error:
                raise InvalidRequest(f"field {name!r} cannot travel as JSON: {error}") from None
        raise


class Connection:
    """Connects when it is first used; once closed it stays closed. One that was given stays open."""

    def __init__(self, settings: Settings | None, given: Nats | None = None) -> None:
        self._settings = settings
        self._nats = given
        self._given = given is not None
        self._vault: Vault | None = None
        self._closed = False
        self._lock = asyncio.Lock()
        self._said_away = False
        self._looking: dict[str, list[asyncio.Future[dict[str, Any] | None]]] = {}
        self.live = Live()
        self.gets = Gets()

    async def nats(self) -> Nats:
        """The connection. Raises `SetupError` when no server answers, `Unavailable` after `close`."""
        async with self._lock:
            if self._closed:
                raise Unavailable("this client was closed; make another one")
            if self._nats is None:
                settings = self._settings or load_settings()
                self._nats = await connect(settings, f"client {settings.instance_id}")
            return self._nats

    async def vault(self) -> Vault:
        """What opens sealed events, when this program has the keys. Raises `SetupError` for keys that are none."""
        if self._vault is None:
            self._vault = await vault_for(self._settings or load_settings())
        return self._vault

    async def close(self) -> None:
        """Close; waits and event streams that are open raise `Unavailable`. Safe to repeat."""
        async with self._lock:
            self._closed = True
            self.live.end()
            if self._nats is not None and not self._given:
                # Not drained: nothing of ours is on its way, and a drain would cancel whoever waits on a subscription.
                await self._nats.close()

    async def request(self, subject: str, payload: Mapping[str, Any], *, timeout: float = 5.0) -> dict[str, Any]:
        """One request, in parts if it is large. Raises the `ApiError` that answers it, `InvalidRequest` for no JSON."""
        nats = await self.nats()
        data = encoded(payload)
        if len(data) > nats.max_payload - SPARE:
            data = await parts.put(nats, data, self._settings or load_settings())
            timeout = max(timeout, parts.PATIENCE)
        return await wire.request(nats, subject, data, timeout=timeout)

    async def insist(self, subject: str, payload: Mapping[str, Any], *, timeout: float = 5.0) -> dict[str, Any]:
        """A request that may safely be made twice: when a part of the platform is away, it is repeated a few times."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + INSIST_FOR
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self.request(subject, payload, timeout=timeout)
            except AWAY:
                if self._closed or attempt == ATTEMPTS or loop.time() > deadline:
                    raise
                await asyncio.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError  # the loop returns or raises

    async def look(self, run_id: str) -> dict[str, Any] | None:
        """The run without its steps; None while the platform cannot be asked. Raises `NotFound`.

        Of those who look at one run at a time one asks for all, but never before any of them has begun to look.
        """
        waiting = self._looking.get(run_id)
        if waiting is not None:
            turn: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            return await turn
        mine: list[asyncio.Future[dict[str, Any] | None]] = []
        self._looking[run_id] = mine
        try:
            return await self._look(run_id)
        finally:
            del self._looking[run_id]
            if mine:
                task = asyncio.ensure_future(self._look_for(run_id, mine))
                _looks.add(task)
                task.add_done_callback(_looks.discard)

    async def _look_for(self, run_id: str, waiting: list[asyncio.Future[dict[str, Any] | None]]) -> None:
        try:
            run = await self.look(run_id)
        except BaseException as error:  # whatever it is, those who wait are told
            for turn in waiting:
                if not turn.done():
                    turn.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for turn in waiting:
                if not turn.done():
                    turn.set_result(run)

    async def _look(self, run_id: str) -> dict[str, Any] | None:
        try:
            reply = await self.request("run.get", {"run_id": run_id, "steps": False}, timeout=LOOK_TIMEOUT)
        except AWAY as error:
            if self._closed:
                raise
            if not self._said_away:
                self._said_away = True
                log.warning("runs cannot be looked at now", action="client.away", run_id=run_id, error=error.message)
            return None
        self._said_away = False
        return reply

    async def details(self, run_id: str, *, after: int = 0) -> dict[str, Any]:
        """A run with all its steps after a seq, whatever their number. Raises `NotFound`, `Unavailable`."""
        run = more = await self.request("run.get", {"run_id": run_id, "after": after})
        page = run.setdefault("steps", [])
        while page and (len(page) == STEPS_PAGE or more.get("more")):
            more = await self.request("run.get", {"run_id": run_id, "after": page[-1]["seq"]})
            page = more.get("steps", [])
            run = {**more, "steps": [*run["steps"], *page]}
        return run

    async def complete(self, run: dict[str, Any]) -> dict[str, Any]:
        """`run`, a reply of `run.get`, with the values that were too large for it."""
        await self.fill(run, run["run_id"])
        for step in run.get("steps") or ():
            await self.fill(step, run["run_id"], step["seq"])
        return run

    async def fill(self, place: dict[str, Any], run_id: str, seq: int | None = None) -> None:
        """Fetch the values of a run, or of its step `seq`, that `place` names in `large`."""
        for what in list(place.pop("large", ())):
            place[what] = await parts.get(await self.nats(), run_id, what, seq)
