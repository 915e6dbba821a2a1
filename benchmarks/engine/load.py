"""Callers: so many runs, so many at a time, each asked for and waited for over NATS, as any client would."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import orjson
import psutil
from nats.aio.client import Client

COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload at one concurrency. Times are milliseconds, CPU is microseconds of the process a step."""

    what: str
    callers: int
    steps_per_second: float
    runs_per_second: float
    p50: float
    p99: float
    commits_per_run: float
    cpu_per_step: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def measure(
    nc: Client,
    database: asyncpg.Connection[asyncpg.Record],
    *,
    what: str,
    subject: str,
    payload: dict[str, Any],
    steps: int,
    runs: int,
    callers: int,
    pid: int,
) -> Measured:
    """Ask `subject` for `runs` runs, `callers` at a time."""
    body = orjson.dumps(payload)
    took: list[float] = []
    left = runs

    async def call() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            reply = orjson.loads((await nc.request(subject, body, timeout=120)).data)
            if reply["status"] != "completed":
                raise RuntimeError(f"{what}: {reply}")
            took.append((time.perf_counter() - began) * 1000)

    process = psutil.Process(pid)
    commits = await _commits(database)
    cpu = sum(process.cpu_times()[:2])
    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - began
    cpu = sum(process.cpu_times()[:2]) - cpu
    commits = await _commits(database) - commits
    took.sort()
    return Measured(
        what,
        callers,
        runs * steps / seconds,
        runs / seconds,
        took[len(took) // 2],
        took[len(took) * 99 // 100],
        commits / runs,
        cpu / (runs * steps) * 1e6,
    )


async def _commits(database: asyncpg.Connection[asyncpg.Record]) -> int:
    """Commits so far; the server's statistics are up to a second behind."""
    await asyncio.sleep(1.2)
    return int(await database.fetchval(COMMITS))
