"""API keys: made once, shown once, kept as a keyed hash, looked up at every request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import asyncpg
import structlog

from perdure.edge.callers import PLATFORM, TENANT, Caller, Role
from perdure.edge.together import Together
from perdure.errors import InvalidRequest, NotFound, SetupError
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.subjects import agent_name

_SQL = load_queries("edge.sql")
PEPPER_FILE: Final = "gateway.secret"
BYTES: Final = 32  # of a key, and of the secret under which it is hashed
KEY: Final = re.compile(r"perdure_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
USED_EVERY: Final = 60.0
_LONGEST: Final = 100 * 365 * 86_400.0

log = structlog.get_logger(__name__)


def pepper(settings: Settings) -> bytes:
    """The secret under which keys are hashed: `PERDURE_GATEWAY_SECRET`, else that of the home, made on first use.

    Reads a file. Raises `SetupError`.
    """
    if settings.gateway_secret:
        if len(settings.gateway_secret) < BYTES:
            raise SetupError(f"PERDURE_GATEWAY_SECRET is too short: give at least {BYTES} random characters")
        return settings.gateway_secret.encode()
    file = settings.home.resolve() / PEPPER_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{PEPPER_FILE}.{secrets.token_hex(6)}")
        if not file.exists():
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as made:  # noqa: PTH123 -- the mode
                made.write(secrets.token_urlsafe(BYTES))
            with suppress(FileExistsError):  # another process was first: its secret counts
                os.link(fresh, file)
            fresh.unlink()
        return file.read_bytes()
    except OSError as error:
        raise SetupError(f"{file} cannot be used: {error.strerror}; set PERDURE_GATEWAY_SECRET instead") from error


def hash_of(secret: str, under: bytes) -> bytes:
    """What is kept of a key."""
    return hmac.new(under, secret.encode(), hashlib.sha256).digest()


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `key` is shown now and never again."""

    key_id: str
    key: str


async def create(
    pool: Pool,
    under: bytes,
    *,
    name: str,
    role: Role = "operator",
    tenant: str = PLATFORM,
    agents: Sequence[str] | None = None,
    lifetime: float | None = None,
    rate_limit: int | None = None,
) -> NewKey:
    """Make a key. `lifetime` is in seconds, `rate_limit` in requests a minute. Raises `InvalidRequest`."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InvalidRequest("a key's name is 1 to 100 printable characters")
    if not TENANT.fullmatch(tenant):
        raise InvalidRequest(f"tenant {tenant!r} is not usable: a-z, 0-9 and single '-' inside, at most 32")
    if lifetime is not None and not 0 < lifetime <= _LONGEST:
        raise InvalidRequest("a key lives longer than 0 seconds, and at most 100 years")
    if rate_limit is not None and not 1 <= rate_limit <= 1_000_000:
        raise InvalidRequest("a rate limit is 1 to 1,000,000 requests a minute")
    try:
        allowed = None if agents is None else sorted({agent_name(each) for each in agents})
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    key_id = "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(12))
    secret = secrets.token_urlsafe(BYTES)
    hashed = hash_of(secret, under)
    await pool.fetchval(_SQL["make_key"], key_id, name, hashed, role, tenant, allowed, rate_limit, lifetime)
    return NewKey(key_id, f"perdure_{key_id}_{secret}")


async def listed(pool: Pool) -> list[dict[str, Any]]:
    """All keys, without their secrets, each with its `state`: `active`, `expired` or `revoked`."""
    found = []
    for row in await pool.fetch(_SQL["list_keys"]):
        each = dict(row)
        expired = each.pop("expired")
        each["state"] = "revoked" if each["revoked_at"] else "expired" if expired else "active"
        found.append(each)
    return found


async def revoke(pool: Pool, key_id: str) -> str:
    """End a key at once, everywhere; its name. Raises `NotFound`."""
    named = KEY.fullmatch(key_id)  # somebody gives the whole key
    row = await pool.fetchrow(_SQL["revoke_key"], named[1] if named else key_id)
    if row is None:
        raise NotFound("there is no key of that id; `perdure key list` shows them")
    return str(row["name"])


class Keys:
    """Looks keys up, all that wait in one query; nothing is cached, so that a revoked key is of no use at once."""

    def __init__(self, pool: Pool, under: bytes) -> None:
        self._pool = pool
        self._under = under
        self._rows = Together(pool, _SQL["keys_by_id"], what="keys")
        self._used: dict[str, float] = {}  # when it was written that a key was used
        self._due: set[str] = set()
        self._writing: asyncio.Task[None] | None = None

    async def caller(self, key: str) -> Caller | None:
        """Whose key it is; None when it is no key, or does not count. Raises `Unavailable`."""
        parts = KEY.fullmatch(key)
        if parts is None:
            return None
        row = await self._rows.ask(parts[1])
        if row is None or not hmac.compare_digest(row["hash"], hash_of(parts[2], self._under)):
            return None
        self._note(row["key_id"])
        agents = None if row["agents"] is None else frozenset(row["agents"])
        return Caller(
            row["name"], cast("Role", row["role"]), row["tenant"], agents, row["key_id"], rate_limit=row["rate_limit"]
        )

    async def count(self, key_id: str) -> bool:
        """Whether the key of this id still counts. Raises `Unavailable`."""
        return await self._rows.ask(key_id) is not None

    async def exist(self) -> bool:
        """Whether a key was ever made: one that was revoked does not open the door again. Raises `Unavailable`."""
        return await self._rows.ask(None) is not None

    async def stop(self) -> None:
        """End the looking."""
        await self._rows.stop()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def _note(self, key_id: str) -> None:
        """Let it be written that a key was used, at most once a minute."""
        now = asyncio.get_running_loop().time()
        if now - self._used.get(key_id, -USED_EVERY) >= USED_EVERY:
            self._used[key_id] = now
            self._due.add(key_id)
            if self._writing is None or self._writing.done():
                self._writing = asyncio.get_running_loop().create_task(self._keep_used())

    async def _keep_used(self) -> None:
        while self._due:
            due, self._due = self._due, set()
            try:
                await self._pool.execute(_SQL["used_keys"], list(due))
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                log.warning("a key's use was not written", action="keys.away", error=type(error).__name__)
