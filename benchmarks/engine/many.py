"""`python -m benchmarks.engine.many`: what 100,000 waiting runs and 1,000,000 finished ones cost.

Waiting runs: the memory of the one agent process that put them all to sleep, and the time until all are through after
one broadcast. Finished runs: how long a run of one step takes with them, beside without. `PERDURE_BENCH_WAITING` and
`PERDURE_BENCH_FINISHED` make it smaller. Writes `benchmarks/results/many.json`.
"""

from __future__ import annotations

import asyncio
import os
import time

import orjson
import psutil

from benchmarks.engine.goals import Figure, percentile, show
from benchmarks.engine.recovery import Bench, benched

WAITING = int(os.environ.get("PERDURE_BENCH_WAITING", "100000"))
FINISHED = int(os.environ.get("PERDURE_BENCH_FINISHED", "1000000"))
FILL = """
INSERT INTO runs (run_id, agent_name, task, task_hash, status, epoch, started_at, finished_at, end_seq, output)
SELECT format('done-%s', n), 'recovering', '{}', 'h', 'completed', 1, now(), now(), 2, '1'
FROM generate_series($1::integer, $2::integer) AS n
"""


async def latency(bench: Bench, prefix: str) -> float:
    """Milliseconds of a run of one step, asked for alone; the median of 200."""
    took = []
    for at in range(220):
        began = time.perf_counter()
        task = {"steps": 1, "every": 0.0}
        said = {"workflow": "beats", "task": task, "run_id": f"{prefix}-{at}", "timeout": 30}
        reply = orjson.loads((await bench.nc.request("run.ask.recovering", orjson.dumps(said), timeout=40)).data)
        if reply["status"] != "completed":
            raise RuntimeError(str(reply))
        took.append((time.perf_counter() - began) * 1000)
    return percentile(took[20:], 50)


async def sleep_all(bench: Bench) -> None:
    """Start so many runs that wait for a word, and see them all asleep."""
    for at in range(0, WAITING, 500):
        await asyncio.gather(*(bench.start("wait", None, f"w-{each}") for each in range(at, min(at + 500, WAITING))))
    query = "SELECT count(*) = $1 FROM runs WHERE workflow = 'wait' AND status = 'waiting'"
    await bench.until(query, WAITING, timeout=900, pause=1.0)


async def broadcast(bench: Bench) -> float:
    """Seconds from the first signal of the broadcast to the last end."""
    began = time.perf_counter()

    async def word(at: int) -> None:
        said = orjson.dumps({"run_id": f"w-{at}", "name": "word", "payload": at, "id": "word"})
        reply = orjson.loads((await bench.nc.request("run.signal", said, timeout=60)).data)
        if reply.get("status") == "error":
            raise RuntimeError(str(reply))

    for at in range(0, WAITING, 200):
        await asyncio.gather(*(word(each) for each in range(at, min(at + 200, WAITING))))
    query = "SELECT count(*) = $1 FROM runs WHERE workflow = 'wait' AND status = 'completed'"
    await bench.until(query, WAITING, timeout=900, pause=0.5)
    return time.perf_counter() - began


async def main() -> None:
    async with benched() as bench:
        agent = await bench.replica("many")
        process = psutil.Process(agent.pid)
        await latency(bench, "warm")
        before = process.memory_info().rss
        await sleep_all(bench)
        await asyncio.sleep(3)
        grown = (process.memory_info().rss - before) / 2**20
        woken = await broadcast(bench)
        few = await latency(bench, "few")
        for at in range(0, FINISHED, 50_000):
            await bench.pool.execute(FILL, at + 1, min(at + 50_000, FINISHED), timeout=120)
        await bench.pool.execute("ANALYZE runs", timeout=120)
        full = await latency(bench, "full")
    show(
        "many",
        [
            Figure(f"memory that {WAITING:,} waiting runs take in their agent process", grown, 20, "MiB"),
            Figure(f"one broadcast until all {WAITING:,} are through", woken, 60, "s"),
            Figure(f"a run of one step beside {FINISHED:,} finished ones", full, few * 1.2, "ms"),
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
