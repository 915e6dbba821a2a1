"""Who is let in: the bearer of a key, of a token, of a ticket; on loopback, where nothing is configured, everybody."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import structlog
from redis.asyncio import Redis

from perdure.edge.callers import Caller
from perdure.edge.keys import Keys
from perdure.edge.limits import Limits
from perdure.edge.tickets import Tickets
from perdure.edge.tokens import Tokens
from perdure.errors import Forbidden, Unauthorized
from perdure.settings import Settings
from perdure.store.postgres import Pool

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL: Final = Caller("local", "admin", tenant=None)

log = structlog.get_logger(__name__)


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether a server on this address is reached from its own machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Lets callers in. `host` is where the server listens, `under` the secret under which keys are hashed."""

    def __init__(self, settings: Settings, host: str, pool: Pool, redis: Redis, under: bytes) -> None:
        self._on_loopback = is_loopback(host)
        self._origins = origins(settings)
        self._rate_limit = settings.gateway_rate_limit
        self._tokens = Tokens.configured(settings)
        self.keys = Keys(pool, under)
        self.tickets = Tickets(redis)
        self._limits = Limits(redis)

    async def is_open(self) -> bool:
        """Whether everybody on this machine is let in: on loopback, with no key made and no issuer configured."""
        return self._on_loopback and self._tokens is None and not await self.keys.exist()

    async def tell(self) -> None:
        """Say in the log who is let in."""
        if await self.is_open():
            log.warning(
                "no keys are made: everybody on this machine may do everything (`perdure key create` ends that)",
                action="gate.open",
            )
        elif self._tokens is None and not await self.keys.exist():
            log.warning("no keys are made: nobody is let in (`perdure key create` makes one)", action="gate.closed")

    async def enter(self, method: str, headers: Mapping[str, str], ticket: str | None = None) -> Caller:
        """The caller of a request. Raises `Unauthorized`, `Forbidden`, `RateLimited`, `Unavailable`."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        borne = given.strip() if scheme.lower() == "bearer" else ""
        if not borne and ticket is not None:
            return await self._by_ticket(ticket)  # which was counted when it was given
        caller = await self._known(borne)
        if caller is None:
            if not await self.is_open():
                raise Unauthorized("this needs a key: send the header `Authorization: Bearer KEY`")
            check_local(method, headers, self._origins)
            return LOCAL
        limit = caller.rate_limit or self._rate_limit
        if limit is not None:
            await self._limits.take(caller.key_id or f"{caller.tenant}/{caller.name}", limit)
        return caller

    async def still(self, caller: Caller) -> bool:
        """Whether a caller who was let in would be let in again. Raises `Unavailable`."""
        if caller.key_id is not None:
            return await self.keys.count(caller.key_id)
        if caller.until is not None:
            return time.time() < caller.until
        return await self.is_open()

    async def _known(self, borne: str) -> Caller | None:
        """Whose key or token it is; None when there is none, or when nothing is asked for here."""
        if not borne:
            return None
        caller = await self.keys.caller(borne)
        if caller is None and self._tokens is not None and borne.count(".") == 2:
            caller = await self._tokens.caller(borne)
        if caller is None and not await self.is_open():
            raise Unauthorized("this key is not known here, or it is expired or revoked")
        return caller

    async def _by_ticket(self, ticket: str) -> Caller:
        caller = await self.tickets.take(ticket)
        if not await self.still(caller):
            raise Unauthorized("this ticket's key is expired or revoked")
        return caller


def origins(settings: Settings) -> frozenset[str]:
    """The sites whose pages may call."""
    return frozenset(each.strip().rstrip("/") for each in settings.gateway_origins.split(",") if each.strip())


@lru_cache(maxsize=64)
def _named(host: str) -> str:
    """The name in a `Host` header; "" when there is none, or nothing that could be one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def check_local(method: str, headers: Mapping[str, str], allowed: frozenset[str] = frozenset()) -> None:
    """Refuse what a page of another site makes a browser send to a server on its own machine. Raises `Forbidden`."""
    if "x-forwarded-for" in headers or "forwarded" in headers:
        raise Forbidden("this came through a proxy, from whomever: make a key (`perdure key create`) and send it along")
    host = _named(headers.get("host", ""))
    if not is_loopback(host):
        raise Forbidden(f"host {host!r} is not this machine: without keys only localhost and 127.0.0.1 are answered")
    origin = headers.get("origin")
    if method in SAFE or origin is None or origin in allowed:
        return
    if origin.partition("://")[2] != headers.get("host"):
        raise Forbidden(f"origin {origin!r} is another site: without keys its pages may not change anything here")
