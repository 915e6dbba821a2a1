"""`python -m benchmarks.config`: how quickly configuration moves, beside the bare path on the same servers.

Prints a table and writes `benchmarks/results/config.json`. Medians of 5 rounds, of storms 3; fsync is on.
`storm_4x1` is a storm of 4 writers whose commits are of 1 update each. PERDURE_BENCH_STORM: the seconds of each storm.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

import asyncpg
import nats
import orjson
import psutil
import uvloop
from rich.console import Console

from perdure.config.keys import DurableAgentSettings
from perdure.config.snapshot import AgentConfig
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.postgres_server import PostgresServer
from perdure.embedded.redis_server import RedisServer
from perdure.settings import Settings
from perdure.store.migrate import migrate

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "config.json"
PUT = (
    "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ($1, 'n', $2) "
    "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = EXCLUDED.config_value"
)
PUT_ROWS = (
    "INSERT INTO agent_configurations (agent_name, config_key, config_value) "
    "SELECT 'one0', put.key, put.value FROM unnest($1::text[], $2::text[]) AS put (key, value) "
    "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = EXCLUDED.config_value"
)
COST = """
DO $$ BEGIN
    FOR turn IN 1..2000 LOOP
        INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('cost', 'n', turn::text)
        ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = EXCLUDED.config_value;
        COMMIT;
    END LOOP;
END $$
"""
STORM = 2100  # updates a second that the writers try: a little more than the 2,000 of the goal, which pacing would miss
ROUNDS = 5
STORMS = 3
out = Console()


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(int(len(values) * share), len(values) - 1)], 3)


async def start(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, cwd=ROOT)


async def latency(pool: asyncpg.Pool, nc: nats.NATS) -> dict[str, float]:
    """SQL commit to a live snapshot in another process, and the bare path: trigger, listener, NATS subscriber."""
    live: asyncio.Queue[float] = asyncio.Queue()
    bare: asyncio.Queue[float] = asyncio.Queue()

    async def on_live(message) -> None:
        live.put_nowait(orjson.loads(message.data)[2])

    async def on_bare(message) -> None:
        bare.put_nowait(float(message.data))

    subscriptions = [await nc.subscribe("bench.live", cb=on_live), await nc.subscribe("bench.bare", cb=on_bare)]
    tasks: set[asyncio.Task[None]] = set()

    def notified(*_heard: object) -> None:
        task = asyncio.create_task(nc.publish("bench.notified", b"x"))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    ours, theirs = [], []
    async with pool.acquire() as listener, pool.acquire() as writer:
        await listener.add_listener("perdure_config", notified)
        for number in range(300):
            while not bare.empty():
                bare.get_nowait()
            await writer.execute(PUT, "one0", str(number))
            committed = time.time()
            ours.append((await asyncio.wait_for(live.get(), 10) - committed) * 1000)
            theirs.append((await asyncio.wait_for(bare.get(), 10) - committed) * 1000)
            await asyncio.sleep(0.002)
        await listener.reset()
    for subscription in subscriptions:
        await subscription.unsubscribe()
    return {
        "live_p50_ms": percentile(ours[50:], 0.5),
        "live_p99_ms": percentile(ours[50:], 0.99),
        "bare_p50_ms": percentile(theirs[50:], 0.5),
        "bare_p99_ms": percentile(theirs[50:], 0.99),
    }


async def rate(nc: nats.NATS, subject: str, seconds: float = 2.0) -> float:
    """Requests a second of 64 callers."""
    done, end = 0, time.perf_counter() + seconds

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await nc.request(subject, b"", timeout=5)
            done += 1

    await asyncio.gather(*(call() for _ in range(64)))
    return done / seconds


async def write_cost(url: str) -> dict[str, float]:
    """Microseconds of Postgres' CPU for one committed write, and on a table without triggers: the least of 5 rounds.

    One backend alone, which waits neither for a client nor for fsync: that leaves what the triggers do.
    """
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE bench_plain (LIKE agent_configurations INCLUDING ALL)")
    await connection.execute("SET synchronous_commit = off")
    backend = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()"))
    found = {}
    for name, sql in (("write", COST), ("bare_write", COST.replace("agent_configurations", "bench_plain"))):
        spent = []
        for _ in range(ROUNDS):
            before = sum(backend.cpu_times()[:2])
            await connection.execute(sql)
            spent.append((sum(backend.cpu_times()[:2]) - before) / 2000 * 1e6)
        found[f"{name}_cpu_us"] = round(min(spent))
    await connection.close()
    return found


async def storm(
    pool: asyncpg.Pool, nc: nats.NATS, seconds: float, watched: list[psutil.Process], *, writers: int, rows: int
) -> dict[str, float]:
    """`STORM` updates a second by `writers` connections, as far as they come: do agents end on the last, never back?

    `rows` updates are one commit. Beside it the same writers on a table without triggers, one after the other.
    """
    seen: dict[str, list[int]] = {}

    async def on_live(message) -> None:
        name, revision, _ = orjson.loads(message.data)
        seen.setdefault(name, []).append(revision)

    written = 0

    async def write_for(sql: str, seconds: float) -> float:
        nonlocal written
        begun, written = time.perf_counter(), 0

        async def write(number: int) -> None:
            nonlocal written
            async with pool.acquire() as connection:
                while (passed := time.perf_counter() - begun) < seconds:
                    if written > passed * STORM:
                        await asyncio.sleep(0.001)
                        continue
                    written += rows
                    await connection.execute(sql, [f"n{number}-{row}" for row in range(rows)], [f"s{written}"] * rows)

        await asyncio.gather(*(write(number) for number in range(writers)))
        return written / (time.perf_counter() - begun)

    bare = await write_for(PUT_ROWS.replace("agent_configurations", "bench_plain"), 1.0)
    subscription = await nc.subscribe("bench.live", cb=on_live)
    memory = [process.memory_info().rss for process in watched]
    busy = [sum(process.cpu_times()[:2]) for process in watched]
    revision = await pool.fetchval("SELECT revision FROM config_counter")
    rate = await write_for(PUT_ROWS, seconds)
    newest = await pool.fetchval("SELECT revision FROM config_heads WHERE agent_name = 'one0'")
    waited = time.perf_counter()
    while seen.get("one0", [0])[-1] != newest and time.perf_counter() - waited < 30:
        await asyncio.sleep(0.01)
    settled = time.perf_counter() - waited
    await subscription.unsubscribe()
    found: dict[str, float] = {
        "storm_updates_per_s": round(rate),
        "storm_bare_per_s": round(bare),
        "storm_updates_lost": float(revision + written // rows - newest),
        "storm_last_revision_reached": float(seen.get("one0", [0])[-1] == newest),
        "storm_went_back": float(any(revisions != sorted(revisions) for revisions in seen.values())),
        "storm_settled_s": round(settled, 3),
    }
    for name, process, before, cpu in zip(("manager", "agent"), watched, memory, busy, strict=True):
        found[f"storm_{name}_grew_mib"] = round((process.memory_info().rss - before) / 2**20, 1)
        found[f"storm_{name}_cpu_share"] = round((sum(process.cpu_times()[:2]) - cpu) / (seconds + settled), 2)
    return {name.replace("storm", f"storm_{writers}x{rows}"): value for name, value in found.items()}


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure; of what must never be (a step back, a last revision missed) the worst."""
    worst = {"went_back": max, "last_revision_reached": min, "updates_lost": max}

    def one(key: str) -> float:
        choose = next((choose for what, choose in worst.items() if key.endswith(what)), statistics.median)
        return float(choose([each[key] for each in rounds]))

    return {key: one(key) for key in rounds[0]}


async def herd(pool: asyncpg.Pool, nc: nats.NATS, agents: int) -> float:
    """Seconds from the commit of one `*` update until all agents have applied it."""
    applied: set[str] = set()
    all_applied = asyncio.Event()

    async def on_live(message) -> None:
        applied.add(orjson.loads(message.data)[0])
        if len(applied) >= agents:
            all_applied.set()

    subscription = await nc.subscribe("bench.live", cb=on_live)
    await pool.execute(PUT.replace("'n'", "'g'"), "*", str(time.time()))
    begun = time.perf_counter()
    await asyncio.wait_for(all_applied.wait(), 60)
    took = time.perf_counter() - begun
    await subscription.unsubscribe()
    return took


def reads() -> float:
    """Nanoseconds of one `get_setting`."""
    config = AgentConfig.from_row({"max_iterations": "5"}, agent_name="a", settings_model=DurableAgentSettings)
    return statistics.median(timeit.repeat(lambda: config.get_setting("max_iterations"), number=100_000)) * 10_000


async def main() -> None:
    results: dict[str, float] = {"get_setting_ns": round(reads())}
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:
        home = Path(folder)
        postgres, nats_server, redis = PostgresServer(home), NatsServer(home), RedisServer(home)
        await asyncio.gather(postgres.start(), nats_server.start(), redis.start())
        processes = []
        try:
            settings = Settings(namespace="", database_url=postgres.url, nats_url=nats_server.url, redis_url=redis.url)
            await migrate(settings)
            results |= await write_cost(postgres.url)
            environment = {**os.environ, "NATS_URL": nats_server.url, "DATABASE_URL": postgres.url}
            environment |= {"REDIS_URL": redis.url, "PERDURE_LOG_LEVEL": "error", "PYTHONPATH": str(ROOT)}
            nc = await nats.connect(nats_server.url)
            ready: asyncio.Queue[bytes] = asyncio.Queue()

            async def on_ready(message) -> None:
                ready.put_nowait(message.data)

            await nc.subscribe("bench.ready", cb=on_ready)
            processes.append(await start(environment, "-m", "config_manager"))
            processes.append(await start(environment, "benchmarks/config/agents.py", "1", "one"))
            await asyncio.wait_for(ready.get(), 60)
            pool = await asyncpg.create_pool(postgres.url, min_size=6, max_size=8)
            results |= median([await latency(pool, nc) for _ in range(ROUNDS)])
            results["live_to_bare_p50"] = round(results["live_p50_ms"] / results["bare_p50_ms"], 2)
            ratios = []
            for _ in range(ROUNDS):
                get, echo = await rate(nc, "config.get.one0"), await rate(nc, "bench.echo")
                ratios.append((get / echo, get, echo))
            ratio, get, echo = sorted(ratios)[2]
            results |= {"get_per_s": round(get), "echo_per_s": round(echo), "get_to_echo": round(ratio, 3)}
            seconds = float(os.environ.get("PERDURE_BENCH_STORM", "6"))
            watched = [psutil.Process(process.pid) for process in processes[:2]]
            for writers, rows in ((1, 1), (4, 1), (4, 4)):
                storms = [await storm(pool, nc, seconds, watched, writers=writers, rows=rows) for _ in range(STORMS)]
                results |= median(storms)
            herds = [start(environment, "benchmarks/config/agents.py", "250", f"herd{n}-") for n in range(4)]
            processes.extend(await asyncio.gather(*herds))
            for _ in range(4):
                await asyncio.wait_for(ready.get(), 120)
            results["herd_1000_s"] = round(statistics.median([await herd(pool, nc, 1000) for _ in range(ROUNDS)]), 3)
            await nc.close()
            await pool.close()
        finally:
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))
            await asyncio.gather(postgres.stop(), nats_server.stop(), redis.stop())
    for name, value in results.items():
        out.print(f"{name:30} {value}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    uvloop.run(main())
