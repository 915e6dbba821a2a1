"""`python -m benchmarks.engine.recovery`: how soon runs go on after a loss, and how late timers are.

Real processes, one Postgres with fsync on; kill -9, SIGSTOP, a run with a long journal, thousands of timers at once.
`PERDURE_BENCH_KILLS=0` and `PERDURE_BENCH_HANGS=0` leave the first two out. Prints each figure with its goal, and
writes `benchmarks/results/recovery.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import nats
import orjson
from nats.aio.client import Client

from benchmarks.engine.goals import Figure, percentile, show
from benchmarks.own import own_settings
from perdure.embedded.platform import Platform
from perdure.embedded.processes import SERVICES
from perdure.settings import Settings

HERE = Path(__file__).parent
KILLS = int(os.environ.get("PERDURE_BENCH_KILLS", "20"))
HANGS = int(os.environ.get("PERDURE_BENCH_HANGS", "5"))
JOURNAL = 10_000
BEATS = "CREATE TABLE beats (run_id text, pid integer, at timestamptz DEFAULT clock_timestamp())"
LATENESS = """
SELECT extract(epoch FROM j.started_at - (r.task #>> '{}')::timestamptz)
FROM journal AS j JOIN runs AS r USING (run_id) WHERE run_id LIKE $1 AND j.kind = 'step'
"""
TIMERS = int(os.environ.get("PERDURE_BENCH_TIMERS", "5000"))
LONE = 5


@dataclass
class Bench:
    """A platform, and replicas of the agent that the benchmark starts and ends itself."""

    nc: Client
    pool: asyncpg.Pool[asyncpg.Record]
    environment: dict[str, str]
    log: Path
    replicas: list[asyncio.subprocess.Process]

    async def replica(self, name: str) -> asyncio.subprocess.Process:
        """A process of the agent, once it is registered."""
        with self.log.open("ab") as log:
            made = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / "recovering.py"),
                env={**self.environment, "PERDURE_INSTANCE_ID": name},
                stdout=log,
                stderr=log,
            )
        self.replicas.append(made)
        query = "SELECT TRUE FROM processes WHERE instance_id = $1 AND state = 'live'"
        await self.until(query, name, timeout=60)
        return made

    async def until(self, query: str, *args: Any, timeout: float = 30.0, pause: float = 0.01) -> Any:
        """What `query` answers, once that is something."""
        deadline = time.monotonic() + timeout
        while not (found := await self.pool.fetchval(query, *args)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:.0f} s: {query} {args}")
            await asyncio.sleep(pause)
        return found

    async def start(self, workflow: str, task: Any, run_id: str) -> None:
        """`run.start`."""
        body = orjson.dumps({"workflow": workflow, "task": task, "run_id": run_id})
        reply = orjson.loads((await self.nc.request("run.start.recovering", body, timeout=10)).data)
        if reply["status"] != "accepted":
            raise RuntimeError(str(reply))


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill a process, also one that is stopped or has ended, and see it gone."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@asynccontextmanager
async def benched() -> AsyncIterator[Bench]:
    """A platform with its services, and no agent yet."""
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        async with Platform(own_settings(home), processes=SERVICES, free_ports=True, offline=False) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            pool = await asyncpg.create_pool(platform.urls.database_url, min_size=2, max_size=8)
            await pool.execute(BEATS)
            environment = {**os.environ, **platform.urls.environment(), "PERDURE_LOG_FORMAT": "json"}
            bench = Bench(nc, pool, environment, Path(home) / "replicas.log", [])
            try:
                yield bench
            finally:
                for each in bench.replicas:
                    await end(each)
                await nc.close()
                pool.terminate()


async def losses(bench: Bench, number: signal.Signals, times: int, what: str) -> list[float]:
    """Seconds from the signal to the first step that another replica begins, for runs that beat every 5 ms."""
    if not times:
        return []
    spare = [await bench.replica(f"{what}-a"), await bench.replica(f"{what}-b")]
    took = []
    for at in range(times):
        run_id = f"{what}-{at}"
        await bench.start("beats", {"steps": 100_000, "every": 0.005}, run_id)
        pid = await bench.until("SELECT pid FROM beats WHERE run_id = $1 OFFSET 20 LIMIT 1", run_id)
        victim = next(each for each in spare if each.pid == pid)
        lost = datetime.now(UTC)
        victim.send_signal(number)
        query = "SELECT min(at) FROM beats WHERE run_id = $1 AND pid <> $2"
        took.append((await bench.until(query, run_id, pid, timeout=60) - lost).total_seconds())
        await bench.nc.request("run.cancel", orjson.dumps({"run_id": run_id}), timeout=10)
        await end(victim)
        spare.remove(victim)
        spare.append(await bench.replica(f"{what}-{at}"))
    for each in spare:
        await end(each)
    return took


async def resume(bench: Bench) -> float:
    """Seconds until a run with 10,000 journaled steps has begun its next step in a new process."""
    first = await bench.replica("long-a")
    await bench.start("long", JOURNAL, "long")
    await bench.until("SELECT TRUE FROM runs WHERE run_id = 'long' AND status = 'waiting'", timeout=300, pause=0.2)
    await end(first)
    await bench.replica("long-b")
    took = []
    for at in range(5):
        began = datetime.now(UTC)
        said = {"run_id": "long", "name": "go", "payload": at}
        await bench.nc.request("run.signal", orjson.dumps(said), timeout=10)
        query = "SELECT at FROM beats WHERE run_id = $1"
        took.append((await bench.until(query, f"long {at}") - began).total_seconds())
        await bench.until("SELECT TRUE FROM runs WHERE run_id = 'long' AND status IN ('waiting', 'completed')")
    return percentile(took, 50)


async def timers(bench: Bench, amount: int, prefix: str) -> list[float]:
    """Seconds by which sleeps that end within one second end late: from then to the beginning of the step after."""
    if not any(each.returncode is None for each in bench.replicas):
        await bench.replica("timers")
    due = datetime.now(UTC) + timedelta(seconds=5 + amount / 500)

    async def one(at: int) -> None:
        moment = due + timedelta(seconds=at / amount)
        await bench.start("nap", moment.isoformat(), f"{prefix}-{at}")

    for at in range(0, amount, 200):
        await asyncio.gather(*(one(each) for each in range(at, min(at + 200, amount))))
    asleep = "SELECT count(*) = $2 FROM runs WHERE run_id LIKE $1 AND status = 'waiting'"
    await bench.until(asleep, f"{prefix}-%", amount, timeout=120, pause=0.1)
    if datetime.now(UTC) >= due:
        raise RuntimeError("the machine is too slow to put them all to sleep in time")
    done = "SELECT count(*) = $2 FROM runs WHERE run_id LIKE $1 AND status = 'completed'"
    await bench.until(done, f"{prefix}-%", amount, timeout=120, pause=0.2)
    return [float(each[0]) for each in await bench.pool.fetch(LATENESS, f"{prefix}-%")]


async def main() -> None:
    async with benched() as bench:
        killed = await losses(bench, signal.SIGKILL, KILLS, "kill")
        hung = await losses(bench, signal.SIGSTOP, HANGS, "hang")
        long = await resume(bench)
        await timers(bench, 200, "warm")
        many = await timers(bench, TIMERS, "many")
        alone = [(await timers(bench, 1, f"alone-{at}"))[0] for at in range(LONE)]
    lease = Settings.model_fields["lease_seconds"].default
    kill = "kill -9 to the next step elsewhere"
    figures = [Figure(f"{kill}, p50 of {KILLS}", percentile(killed, 50) * 1000, 100, "ms")] if killed else []
    figures += [Figure(f"{kill}, p99 of {KILLS}", percentile(killed, 99) * 1000, 500, "ms")] if killed else []
    if hung:
        worst = max(hung) * 1000
        figures.append(Figure(f"a hung process (SIGSTOP), worst of {HANGS}", worst, (lease + 0.5) * 1000, "ms"))
    figures += [
        Figure(f"resume of a run with {JOURNAL:,} journaled steps", long * 1000, 300, "ms"),
        Figure(f"lateness of {TIMERS:,} timers in one second, p99", percentile(many, 99) * 1000, 300, "ms"),
        Figure(f"lateness of one timer, p50 of {LONE}", percentile(alone, 50) * 1000, 10, "ms"),
    ]
    show("recovery", figures)


if __name__ == "__main__":
    asyncio.run(main())
