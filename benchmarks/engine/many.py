"""`python -m benchmarks.engine.many`: what many waiting runs and many finished ones cost.

Waiting runs: the memory of the one agent process that put them all to sleep, beside what it had after as much work at a
time with none waiting, and the time until all are through after one broadcast (`run.bulk`). Finished runs: how long a
run of one step takes with them, beside without. It takes about a minute with 20,000 waiting and 200,000 finished ones;
`PERDURE_BENCH_WAITING` (to 100,000) and `PERDURE_BENCH_FINISHED` (to 1,000,000) make it as large as the goals. It says
what it does, and writes `benchmarks/results/many.json`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import orjson
import psutil

from benchmarks.engine.goals import Figure, percentile, show
from benchmarks.engine.recovery import Bench, benched

WAITING = int(os.environ.get("PERDURE_BENCH_WAITING", "20000"))
FINISHED = int(os.environ.get("PERDURE_BENCH_FINISHED", "200000"))
AT_ONCE = 500  # starts
WARM = 10_000  # runs before the memory is looked at
SHORT = {"steps": 1, "every": 0.0}
PAGE = 500  # runs in a page of the broadcast
COUNT = "SELECT count(*) FROM runs WHERE workflow = 'wait' AND status = $1"
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
        said = {"workflow": "beats", "task": SHORT, "run_id": f"{prefix}-{at}", "timeout": 30}
        reply = orjson.loads((await bench.nc.request("run.ask.recovering", orjson.dumps(said), timeout=40)).data)
        if reply["status"] != "completed":
            raise RuntimeError(str(reply))
        took.append((time.perf_counter() - began) * 1000)
    return percentile(took[20:], 50)


def say(what: str) -> None:
    """A line of progress."""
    print(f"{time.monotonic() - BEGAN:7.1f} s  {what}", file=sys.stderr, flush=True)


BEGAN = time.monotonic()


async def all_are(bench: Bench, status: str) -> None:
    """Come back when all that were to wait have this status; says how many have, every few seconds."""
    deadline, told = time.monotonic() + 900, time.monotonic()
    while (found := await bench.pool.fetchval(COUNT, status)) < WAITING:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{found:,} of {WAITING:,} runs are {status}")
        if time.monotonic() > told + 5:
            told = time.monotonic()
            say(f"{found:,} of {WAITING:,} are {status}")
        await asyncio.sleep(0.25)


async def warm(bench: Bench) -> None:
    """Let the agent do as much at a time as it will, with runs that end: its memory is then that of a busy process."""
    for at in range(0, WARM, AT_ONCE):
        await asyncio.gather(*(bench.start("beats", SHORT, f"b-{each}") for each in range(at, at + AT_ONCE)))
    done = "SELECT count(*) FROM runs WHERE run_id LIKE 'b-%' AND status = 'completed'"
    while await bench.pool.fetchval(done) < WARM:
        await asyncio.sleep(0.25)


async def sleep_all(bench: Bench) -> None:
    """Start so many runs that wait for a word, and see them all asleep."""
    for at in range(0, WAITING, AT_ONCE):
        if at % 10_000 == 0:
            say(f"{at:,} of {WAITING:,} runs are started")
        upto = min(at + AT_ONCE, WAITING)
        await asyncio.gather(*(bench.start("wait", None, f"w-{each}") for each in range(at, upto)))
    await all_are(bench, "waiting")


async def broadcast(bench: Bench) -> tuple[float, float]:
    """Seconds from a broadcast's first page to its last answer, and to the last end."""
    began, cursor = time.monotonic(), None
    while True:
        said = {
            "action": "signal", "name": "word", "payload": 1, "id": "word", "limit": PAGE,
            "filter": {"agent": "recovering", "workflow": "wait"}, "cursor": cursor,
        }  # fmt: skip
        reply = orjson.loads((await bench.nc.request("run.bulk", orjson.dumps(said), timeout=60)).data)
        if reply["status"] != "success" or reply["failed"]:
            raise RuntimeError(str(reply))
        if (cursor := reply["next_cursor"]) is None:
            break
    sent = time.monotonic() - began
    say(f"the broadcast is sent, in {sent:.1f} s")
    await all_are(bench, "completed")
    return sent, time.monotonic() - began


async def fill(bench: Bench) -> None:
    """Put so many finished runs beside the others."""
    for at in range(0, FINISHED, 50_000):
        say(f"{at:,} of {FINISHED:,} finished runs are there")
        await bench.pool.execute(FILL, at + 1, min(at + 50_000, FINISHED), timeout=120)
    await bench.pool.execute("ANALYZE runs", timeout=120)


async def main() -> None:
    async with benched() as bench:
        agent = await bench.replica("many")
        process = psutil.Process(agent.pid)
        await latency(bench, "warm")
        await warm(bench)
        before = process.memory_info().rss
        await sleep_all(bench)
        await asyncio.sleep(3)
        grown = (process.memory_info().rss - before) / 2**20
        say(f"all are asleep; the agent has {grown:.1f} MiB more than before")
        sent, woken = await broadcast(bench)
        few = await latency(bench, "few")
        await fill(bench)
        full = await latency(bench, "full")
        say(f"a run of one step took {few:.2f} ms before, and takes {full:.2f}")
    part = WAITING / 100_000
    show(
        "many",
        [
            Figure(f"memory that {WAITING:,} waiting runs take in their agent process", grown, 20, "MiB"),
            Figure(f"one broadcast to {WAITING:,} runs until it is sent", sent, 60 * part, "s"),
            Figure(f"the same until all {WAITING:,} are through", woken, 60 * part, "s"),
            Figure(f"a run of one step beside {FINISHED:,} finished ones", full, few * 1.2, "ms"),
        ],
    )


if __name__ == "__main__":
    asyncio.run(main())
