"""The audit log: who acts, and the chain of hashes that shows whether it was touched.

Rows are written by triggers, with the act. Here they are sealed in blocks, and read again. A row's hash has two halves:
of what it says, and of its values, which configuration may mask later when a key turns out to be a secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import asyncpg
import orjson
import structlog

from perdure.errors import SetupError
from perdure.store.actor import actor
from perdure.store.postgres import Connection, Pool, PooledConnection
from perdure.store.queries import load_queries

_SQL = load_queries("audit.sql")
Chain = Literal["acts", "configuration"]
Row: TypeAlias = Mapping[str, Any] | asyncpg.Record
CHAINS: Final[tuple[Chain, ...]] = ("acts", "configuration")
BLOCK: Final = 5000  # acts in a block, or revisions of configuration
WIDTH: Final = 64  # bytes of hashes a row
PATIENCE: Final = timedelta(minutes=5)  # within which a transaction with a lower id commits, or never
MOST_GAPS: Final = 10_000
MASKED: Final = "********"

log = structlog.get_logger(__name__)


@asynccontextmanager
async def acting(connection: PooledConnection, who: str) -> AsyncIterator[None]:
    """What `connection` does inside is done in the name of `who`."""
    await connection.execute(_SQL["act_as"], who)
    try:
        yield
    finally:
        try:
            await connection.execute(_SQL["act_as"], "")
        except BaseException:  # a cancellation, too: nobody else shall act in this name
            connection.terminate()
            raise


class ActingPool:
    """A pool whose statements are acts of whoever asked (`actor`); without one, the pool itself."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[PooledConnection]:
        """As `Pool.acquire`."""
        async with self._pool.acquire() as connection:
            if who := actor.get():
                async with acting(connection, who):
                    yield connection
            else:
                yield connection

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        """As `Pool.fetchrow`."""
        async with self.acquire() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """As `Pool.fetchval`."""
        async with self.acquire() as connection:
            return await connection.fetchval(query, *arguments)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """As `Pool.fetch`."""
        async with self.acquire() as connection:
            return list(await connection.fetch(query, *arguments))

    async def execute(self, query: str, *arguments: Any) -> str:
        """As `Pool.execute`."""
        async with self.acquire() as connection:
            return str(await connection.execute(query, *arguments))


def acting_pool(pool: Pool) -> Pool:
    """`pool`, with acts in the name of whoever asked."""
    return ActingPool(pool)  # type: ignore[return-value]  # what we use of a pool


# -- hashes -----------------------------------------------------------------------------------------------------------


def _hash(parts: Sequence[str]) -> bytes:
    return hashlib.sha256(orjson.dumps(parts)).digest()


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def hash_act(row: Row) -> bytes:
    """64 bytes for a row of the log."""
    said = [str(row["id"]), _time(row["at"]), row["actor"], row["sql_user"], row["act"], row["subject"]]
    return _hash(said) + _hash([row["detail"]])


def hash_change(row: Row) -> bytes:
    """64 bytes for a row of the history of configuration."""
    said = [str(row["id"]), _time(row["at"]), row["agent_name"], row["config_key"], row["changed_by"], row["sql_user"]]
    said += [str(row["old_active"]), str(row["new_active"])]
    return _hash(said) + _hash([repr(row["old_value"]), repr(row["new_value"])])


def content_of(ids: Sequence[int], hashes: bytes) -> bytes:
    """What a block says of its rows, in one hash: it stays when they are gone."""
    return hashlib.sha256(orjson.dumps(list(ids)) + hashes).digest()


def digest_of(key: bytes, chain: str, seq: int, before: bytes, seal: Row) -> bytes:
    """Of a block and the one before; with a key nobody can make it anew who has the database alone."""
    times = [_time(seal["first_at"]), _time(seal["last_at"])]
    data = orjson.dumps([chain, seq, before.hex(), seal["high"], times, list(seal["gaps"]), seal["content"].hex()])
    return hmac.digest(key, data, "sha256") if key else hashlib.sha256(data).digest()


def read_key(text: str | None) -> tuple[str, bytes]:
    """(id, key) of `PERDURE_AUDIT_KEY`, whose id is the beginning of its hash. Raises `SetupError`."""
    if not text:
        return "", b""
    if len(text) < 32:
        raise SetupError("PERDURE_AUDIT_KEY is too short: give at least 32 random characters (`openssl rand -hex 32`)")
    return hashlib.sha256(text.encode()).hexdigest()[:12], hashlib.sha256(b"audit\x1f" + text.encode()).digest()


# -- verifying --------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What a check of a chain came to: `broken` is empty, or says what the first broken row is."""

    chain: Chain
    broken: str = ""
    rows: int = 0
    pruned: int = 0  # rows that are gone because they were older than they are kept
    masked: int = 0  # changes of configuration whose values were hidden later
    waiting: int = 0  # acts that are not sealed yet
    seq: int = 0
    digest: bytes = b""


async def verify(
    connection: Connection | PooledConnection, chain: Chain, audit_key: str | None, *, days: float = 0,
    remembered: tuple[int, bytes] | None = None,
) -> Verdict:  # fmt: skip
    """Read a chain from its beginning, and compare it with the rows.

    `days`: older rows may be gone. `remembered`: a block and its digest as they were seen once, outside the database.
    """
    found = Verdict(chain)
    key_id, key = read_key(audit_key)
    oldest = datetime.now(UTC) - timedelta(days=days) if days else None
    marks = dict(await connection.fetchrow(_SQL["change_marks"]) or {}) if chain == "configuration" else {}
    sealed: set[int] = set()
    before, high, gaps = b"", 0, []
    while page := await connection.fetch(_SQL["seals"], chain, found.seq):
        for seal in page:
            may_be_empty = (
                seal["high"] <= marks["pruned_to"]
                if chain == "configuration"
                else oldest is not None and seal["last_at"] < oldest
            )
            if not found.broken:
                found.broken = _block_is_broken(found, seal, before, key_id, key, may_be_empty=may_be_empty)
            if not found.broken:
                query = _SQL["acts_of"] if chain == "acts" else _SQL["changes_of"]
                rows = await connection.fetch(query, list(dict.fromkeys(seal["ids"])))
                pruned = marks["pruned_to"] if chain == "configuration" else None
                found.broken = await asyncio.to_thread(_row_is_broken, found, seal, rows, oldest, pruned)
            if found.broken:
                return found
            found.seq, found.digest, before = seal["seq"], seal["digest"], seal["digest"]
            high, gaps = seal["high"], list(seal["gaps"])
            sealed.update(seal["ids"])
            if remembered is not None and remembered[0] == found.seq and remembered[1] != found.digest:
                found.broken = f"block {found.seq} is not the one that was remembered: the chain was made anew"
                return found
    found.broken = await _end_is_broken(connection, found, marks, high, sealed, gaps, remembered)
    if not found.broken and chain == "acts":
        found.waiting = await connection.fetchval(_SQL["waiting"], high)
    return found


def _block_is_broken(found: Verdict, seal: Row, before: bytes, key_id: str, key: bytes, *, may_be_empty: bool) -> str:
    seq = found.seq + 1
    if seal["seq"] != seq:
        return f"block {seq} of the chain is missing: the next one is {seal['seq']}"
    if seal["key_id"] and seal["key_id"] != key_id:
        return f"block {seq} is sealed with the key {seal['key_id']}: set PERDURE_AUDIT_KEY to it, or it was forged"
    if key and not seal["key_id"]:
        return f"block {seq} is sealed without a key, and PERDURE_AUDIT_KEY is set: it was forged, or sealed before"
    if len(seal["hashes"]) != WIDTH * len(seal["ids"]):
        return f"block {seq} was changed: it has not one hash for each of its rows"
    if not seal["ids"] and not may_be_empty:
        return f"block {seq} was emptied before its time: it was sealed until {seal['last_at']:%F %T}"
    if seal["ids"] and content_of(seal["ids"], seal["hashes"]) != seal["content"]:
        return f"block {seq} was changed: its hashes are not those that were sealed"
    wanted = digest_of(key if seal["key_id"] else b"", found.chain, seq, before, seal)
    return "" if hmac.compare_digest(wanted, seal["digest"]) else f"block {seq} was changed, or the one before it"


def _row_is_broken(
    found: Verdict, seal: Row, rows: Sequence[Row], oldest: datetime | None,
    pruned_to: int | None,
) -> str:  # fmt: skip
    make = hash_act if found.chain == "acts" else hash_change
    there: dict[int, list[Row]] = {}
    for row in rows:
        there.setdefault(row["id"], []).append(row)
    by_hash: dict[bytes, Row] = {make(row)[:32]: row for row in rows}
    for at, each in enumerate(seal["ids"]):
        wanted = seal["hashes"][at * WIDTH : (at + 1) * WIDTH]
        found.rows += 1
        same = by_hash.get(wanted[:32])  # the id is in it
        if same is not None:
            if make(same) == wanted:
                continue
            if found.chain == "configuration" and MASKED in (same["old_value"], same["new_value"]):
                found.masked += 1
                continue
            return f"row {each} was changed: {_about(same)}"
        if there.get(each) and not (pruned_to is not None and each <= pruned_to):
            return f"row {each} was changed: {_about(there[each][0])}"
        if (oldest is not None and seal["last_at"] < oldest) or (pruned_to is not None and each <= pruned_to):
            found.pruned += 1
            continue
        return f"row {each} is missing: it was sealed between {seal['first_at']:%F %T} and {seal['last_at']:%F %T}"
    if found.chain == "configuration" and len(rows) > len(seal["ids"]):
        hashes = {seal["hashes"][at : at + 32] for at in range(0, len(seal["hashes"]), WIDTH)}
        extra = next(row for row in rows if make(row)[:32] not in hashes)
        return f"row {extra['id']} was inserted: {_about(extra)}"
    return ""


async def _end_is_broken(
    connection: Connection | PooledConnection, found: Verdict, marks: Row, high: int, sealed: set[int],
    gaps: Sequence[int], remembered: tuple[int, bytes] | None,
) -> str:  # fmt: skip
    head = await connection.fetchrow(_SQL["head"], found.chain)
    if (head is None) != (found.seq == 0) or (
        head is not None and (head["seq"], head["digest"]) != (found.seq, found.digest)
    ):
        said = head["seq"] if head else "none"
        return f"the chain ends at block {found.seq}, and its head says {said}: it was cut short"
    if remembered is not None and remembered[0] > found.seq:
        return f"the chain ends at block {found.seq}, and block {remembered[0]} was remembered: it was cut short"
    query, of, allowed, at = _SQL["act_ids"], _SQL["acts_of"], set(gaps), -(2**63)
    if found.chain == "configuration":
        query, of = _SQL["change_ids"], _SQL["changes_of"]
        last, newest = marks["last"] or 0, marks["newest"]
        if last < newest and newest > marks["pruned_to"]:
            return f"row {newest} is missing: history ends at {last}, and the revision is {newest}"
    while ids := [row["id"] for row in await connection.fetch(query, at, high)]:
        for each in ids:
            if each not in sealed and each not in allowed:
                row, *_ = await connection.fetch(of, [each])
                return f"row {each} was inserted: {_about(row)}"
        at = ids[-1]
    return ""


def _about(row: Row) -> str:
    if "act" in row:
        return f"{row['act']} {row['subject']} by {row['actor']} at {row['at']:%F %T}"
    return f"{row['agent_name']} {row['config_key']} by {row['changed_by']} at {row['at']:%F %T}"
