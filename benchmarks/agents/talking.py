"""Talks with the benchmark's agent over NATS, as any client would, and what they cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import orjson
import psutil
from nats.aio.client import Client

from benchmarks.engine.load import COMMITS
from perdure.llm.client import ModelClient
from perdure.llm.types import ModelRequest, ModelSettings

STATISTICS = 1.2  # seconds after which Postgres has told its statistics what a connection did
CORES = psutil.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Talk:
    """Turns over so many sessions at a time. Times are milliseconds; `machine` is the part of its CPU that was used."""

    sessions: int
    replicas: int
    turns_per_second: float
    p50: float
    p99: float
    commits_per_turn: float
    agents_cpu: float
    all_cpu: float
    machine: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class Bench:
    """A platform under measurement: `pids` are its processes by name, agents among them."""

    nc: Client
    database: asyncpg.Connection[asyncpg.Record]
    pids: dict[str, int]

    async def turn(self, session: str, number: int, agent: str = "talker") -> tuple[float, str]:
        """One turn; its milliseconds, and what was answered."""
        body = orjson.dumps({"task": f"turn {number}", "session_id": session, "timeout": 60})
        began = time.perf_counter()
        reply = orjson.loads((await self.nc.request(f"run.ask.{agent}", body, timeout=65)).data)
        if reply["status"] != "completed":
            raise RuntimeError(f"turn {number} of {session}: {reply}")
        return (time.perf_counter() - began) * 1000, reply["output"]

    async def talk(self, label: str, sessions: int, turns: int, *, replicas: int = 1, agent: str = "talker") -> Talk:
        """`turns` turns over `sessions` sessions at a time."""
        took: list[float] = []

        async def one(session: str) -> None:
            took.extend([(await self.turn(session, number, agent))[0] for number in range(turns // sessions)])

        await asyncio.sleep(STATISTICS)
        commits, cpu, busy = await self.database.fetchval(COMMITS), self._cpu(), _busy()
        began = time.perf_counter()
        await asyncio.gather(*(one(f"{label}-{at}") for at in range(sessions)))
        seconds = time.perf_counter() - began
        agents, everything = (after - before for after, before in zip(self._cpu(), cpu, strict=True))
        busy = _busy() - busy
        await asyncio.sleep(STATISTICS)
        commits = await self.database.fetchval(COMMITS) - commits
        took.sort()
        return Talk(
            sessions=sessions,
            replicas=replicas,
            turns_per_second=len(took) / seconds,
            p50=took[len(took) // 2],
            p99=took[len(took) * 99 // 100],
            commits_per_turn=commits / len(took),
            agents_cpu=agents * 1000 / len(took),
            all_cpu=everything * 1000 / len(took),
            machine=busy / (seconds * CORES),
        )

    async def long_talk(self, turns: int) -> tuple[dict[str, list[Any]], str]:
        """For each turn of one conversation its milliseconds and the bytes of WAL it wrote; and the last answer."""
        took: list[float] = []
        wal: list[int] = []
        said = ""
        for number in range(turns):
            before = await self.database.fetchval("SELECT pg_current_wal_insert_lsn()")
            milliseconds, said = await self.turn("long", number)
            took.append(milliseconds)
            wal.append(int(await self.database.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)))
        return {"ms": took, "wal": wal}, said

    def _cpu(self) -> tuple[float, float]:
        """CPU seconds of the agents' processes, and of all with this one, their children included."""
        agents, everything = 0.0, _seconds(psutil.Process())
        for name, pid in self.pids.items():
            process = psutil.Process(pid)
            used = sum(_seconds(each) for each in (process, *process.children(recursive=True)))
            everything += used
            if "talker" in name or "waiter" in name:
                agents += used
        return agents, everything


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _busy() -> float:
    """CPU seconds of the machine that something used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


async def model_alone(environment: dict[str, str]) -> float:
    """What asking the offline model takes without any platform: the middle of 200 calls, in milliseconds."""
    where = ModelSettings("offline", environment["PERDURE_OFFLINE_MODEL_URL"], "-")
    request = ModelRequest([{"role": "user", "content": "turn 1"}])
    client = ModelClient()
    took: list[float] = []
    try:
        for _ in range(200):
            began = time.perf_counter()
            await client.complete(where, request)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        await client.close()
    return sorted(took)[100]
