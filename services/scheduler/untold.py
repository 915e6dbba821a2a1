"""Tells again the ends whose event may have been lost: their process died, or was cut off, right after the commit.

Ends that a process commits are published by it, and nothing is written for that. Doubtful ones are marked `untold`: by
the reaper for a lost process, by a process itself for the time in which it had no connection to NATS, and by whoever
ends a run outside of any process.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import orjson
import structlog
from nats import errors as nats_errors
from nats.aio.client import Client

from perdure import subjects
from perdure.bus.namespace import stream_at, subject_at
from perdure.engine import runs
from perdure.engine.events import LARGEST_DATA, end_data, ended_payload, publish_nowait, render
from perdure.engine.rows import Move
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, vault_of

_SQL = load_queries("ends.sql")
log = structlog.get_logger(__name__)

BATCH: Final = 1000
AT_ONCE: Final = 64
SETTLED: Final = 1.0  # seconds after which an event that was sent is in the stream


class UntoldEnds:
    """Publishes what the stream of events does not have."""

    def __init__(self, pool: Pool, nats: Client) -> None:
        self._pool = pool
        self._nats = nats
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def tell(self) -> int:
        """Look at up to 1,000 doubtful ends and tell those that were not; how many those were."""
        if not self._nats.is_connected:
            return 0
        before = datetime.now(UTC) - timedelta(seconds=SETTLED)
        ends = await self._pool.fetch(_SQL["untold_ends"], before, BATCH)
        if not ends:
            return 0
        try:
            replies = await runs.outcomes(self._pool, ends, LARGEST_DATA)
            told = await asyncio.gather(*(self._one(*each) for each in zip(ends, replies, strict=True)))
            await self._nats.flush(timeout=2)
        except (nats_errors.Error, TimeoutError) as error:
            log.info("ends not told", action="ends.retry", error=type(error).__name__)
            return 0
        await self._pool.execute(_SQL["told_ends"], [end["run_id"] for end in ends], [end["end_seq"] for end in ends])
        if sum(told):
            log.info("told ends again", action="ends.told", runs=sum(told))
        return sum(told)

    async def _one(self, end: asyncpg.Record, reply: dict[str, Any]) -> bool:
        run_id, status = end["run_id"], end["status"]
        async with self._gate:
            if await self._is_told(run_id, f"run.{status}", end["end_seq"]):
                return False
        output, error = (orjson.dumps(reply[key]).decode() if key in reply else None for key in ("output", "error"))
        data, vault = end_data(output, error), vault_of(self._pool)
        await vault.ready([Spot("event", run_id)])
        event = render(end["end_seq"], f"run.{status}", run_id, end["agent_name"], end["finished_at"], data, vault)
        publish_nowait(self._nats, subjects.run_events(run_id), event)
        if "large" in reply:
            said = orjson.dumps({"status": status, "run_id": run_id, "agent": end["agent_name"], "look": True})
        else:
            move = Move(status, output=output, error=error)
            said = ended_payload(run_id, end["agent_name"], move, look=vault.seals)
        publish_nowait(self._nats, subjects.run_ended(end["agent_name"], run_id), said)
        return True

    async def _is_told(self, run_id: str, kind: str, seq: int) -> bool:
        """Whether the newest event of the run in the stream is its end."""
        wanted = orjson.dumps({"last_by_subj": subject_at(self._nats, subjects.run_events(run_id))})
        subject = f"$JS.API.DIRECT.GET.{stream_at(self._nats, subjects.STREAM_EVENTS)}"
        found = await self._nats.request(subject, wanted, timeout=2)
        if (found.headers or {}).get("Status"):
            return False  # it has none
        said = orjson.loads(found.data)
        return bool((said.get("type"), said.get("seq")) == (kind, seq))
