"""The statements of queues: claims that keep their bounds, places in their lines, and how they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    import asyncpg

    from perdure.config.snapshot import AgentConfig
    from perdure.engine.offer import Offer

_SQL = load_queries("queues.sql")


async def where_they_stand(pool: Pool, agent: str, run_ids: Sequence[str]) -> dict[str, str]:
    """The queue of each pending run among `run_ids` that stands in one.

    An agent whose own queue has limits has its runs stand there, also those that were accepted before.
    """
    found = await pool.fetch(_SQL["missed"], run_ids, agent)
    if unplaced := [record["run_id"] for record in found if record["unplaced"]]:
        await place(pool, unplaced, own=True)
    return {record["run_id"]: record["queue_name"] for record in found}


async def place(pool: Pool | PooledConnection, run_ids: Sequence[str], *, own: bool) -> None:
    """Give pending runs their places in line; with `own`, those without a queue stand in their agent's."""
    await pool.execute(_SQL["place"], run_ids, own)


async def claim_queued(
    pool: Pool,
    process_id: str,
    agent: str,
    queue: str,
    slots: int,
    config: AgentConfig,
    offer: Offer,
    *,
    suspects: bool = False,
) -> list[asyncpg.Record]:
    """Claim up to `slots` of the next runs of `queue`, in their order: of those that are suspected, or the others."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_SQL["lock_queue"], queue)
        found: list[asyncpg.Record] = await connection.fetch(
            _SQL["claim_queued"],
            process_id,
            queue,
            agent,
            slots,
            config.hash,
            config.revision,
            offer.names,
            offer.versions,
            offer.hashes,
            offer.newest,
            suspects,
        )
    return found


async def look(pool: Pool, queue: str | None = None) -> list[tuple[str, str]]:
    """The processes that have a place for a run of a queue in which some could go on: (process, run)."""
    return [(record["process_id"], record["run_id"]) for record in await pool.fetch(_SQL["look"], queue)]


async def list_queues(pool: Pool, queue: str | None = None) -> list[dict[str, Any]]:
    """How each queue is: what waits, what runs, its limits, and the settings that are held because they are bad."""
    return [
        {
            "queue": record["queue_name"],
            "pending": record["pending"],
            "delayed": record["delayed"],
            "running": record["running"],
            "started": record["begun"] if record["rate_limit"] is not None else None,
            "concurrency": record["concurrency"],
            "process_concurrency": record["process_concurrency"],
            "rate_limit": record["rate_limit"],
            "rate_period_seconds": record["rate_period"] if record["rate_limit"] is not None else None,
            "next_start_at": record["next_start_at"].isoformat() if record["next_start_at"] else None,
            "waits_for": _why(record),
            "held": dict.fromkeys(record["held"] or (), "is not a number within its bounds"),
        }
        for record in await pool.fetch(_SQL["list_queues"], queue)
    ]


async def why_queued(pool: Pool, queue: str) -> dict[str, str] | None:
    """Why a pending run of `queue` does not begin, as `run.get` says it."""
    for record in await pool.fetch(_SQL["list_queues"], queue):
        why, limit = _why(record), record["concurrency"]
        if why == "concurrency":
            held = "is held: its queue_concurrency is 0" if limit == 0 else f"has all its {limit} places taken"
            return {"code": "waiting_for_place", "message": f"queue {queue!r} {held}"}
        if why == "rate":
            next_at = record["next_start_at"]
            until = f"; the next one may at {next_at.isoformat()}" if next_at else ""
            said = f"{record['rate_limit']} runs of queue {queue!r} began within {record['rate_period']:g} s{until}"
            return {"code": "waiting_for_rate", "message": said}
        ahead = record["pending"] - 1
        if ahead > 0:
            return {"code": "waiting_in_queue", "message": f"{ahead} other runs wait in queue {queue!r}"}
    return None


def _why(record: asyncpg.Record) -> str | None:
    """What holds the pending runs of a queue back: `concurrency`, `rate`, or nothing."""
    if not record["pending"]:
        return None
    if record["free"] == 0:
        return "concurrency"
    return "rate" if record["tokens"] == 0 else None
