"""`python -m benchmarks.engine.conversation`: workload D, 500 turns of a growing conversation, one after the other.

What a late turn takes and writes beside an early one: several conversations grow, then their turns around the 500th
take turns with those around the 5th of new ones, so that both are measured in the same moments. The agent's model
answers at once and from within: nothing but the engine and the session is measured. `MODEL_SHOWN` (20) is how many
messages of a conversation the model is shown. Prints the figures with their goals, and writes
`benchmarks/results/conversation.json`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import nats
import orjson
from nats.aio.client import Client

from benchmarks.engine.goals import Figure, percentile, show
from benchmarks.own import own_settings
from perdure.embedded.platform import Platform
from perdure.embedded.processes import SERVICES, python_environment

AGENT = Path(__file__).parents[1] / "agents" / "waiter.py"
EARLY, LATE = 5, 500
AROUND = 4  # turns before and after them that count, too
TALKS = int(os.environ.get("PERDURE_BENCH_TALKS", "3"))
Turn = tuple[float, float]
LIVE = "SELECT count(*) FROM processes WHERE agent_name = 'waiter' AND state = 'live'"
WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"


async def conversation(
    nc: Client, database: asyncpg.Connection[asyncpg.Record], environment: dict[str, str]
) -> list[Figure]:
    """Talk with an agent of its own on this platform."""
    said = python_environment({**environment, "MODEL_SECONDS": "0", "PERDURE_INSTANCE_ID": "waiter-1"})
    agent = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), env=said, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        while not await database.fetchval(LIVE):
            if agent.returncode is not None:
                raise RuntimeError("the agent of the conversation did not start")
            await asyncio.sleep(0.05)
        early: list[Turn] = []
        late: list[Turn] = []
        await asyncio.gather(*(grow(nc, f"long-{at}", LATE - AROUND - 1) for at in range(TALKS)))
        for at in range(TALKS):
            for number in range(-AROUND, AROUND + 1):
                early.append(await measured(nc, database, f"new-{at}", EARLY + number))
                late.append(await measured(nc, database, f"long-{at}", LATE + number))
    finally:
        if agent.returncode is None:
            agent.terminate()
        await agent.wait()
    return [
        Figure(
            f"D, {of} of turn {LATE} against turn {EARLY} ({middle(early, place):,.{digits}f} {unit})",
            middle(late, place) / middle(early, place),
            1.1,
            "x",
        )
        for place, of, digits, unit in ((0, "time", 1, "ms"), (1, "WAL", 0, "B"))
    ]


def middle(turns: list[Turn], place: int) -> float:
    """The middle of their milliseconds (0), or of their bytes (1)."""
    return percentile([turn[place] for turn in turns], 50)


async def grow(nc: Client, session: str, turns: int) -> None:
    """The first turns of a conversation."""
    for number in range(1, turns + 1):
        await turn(nc, session, number)


async def measured(nc: Client, database: asyncpg.Connection[asyncpg.Record], session: str, number: int) -> Turn:
    """One turn: its milliseconds, and the bytes of WAL that it wrote."""
    before = await database.fetchval(WAL)
    took = await turn(nc, session, number)
    return took, float(await database.fetchval(WAL) - before)


async def turn(nc: Client, session: str, number: int) -> float:
    """The milliseconds from the question to the answer."""
    body = orjson.dumps({"task": f"turn {number}", "session_id": session, "timeout": 60})
    began = time.perf_counter()
    reply = orjson.loads((await nc.request("run.ask.waiter", body, timeout=65)).data)
    if reply["status"] != "completed":
        raise RuntimeError(f"turn {number} of {session}: {reply}")
    return (time.perf_counter() - began) * 1000


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        async with Platform(own_settings(home), processes=SERVICES, free_ports=True, offline=False) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            database = await asyncpg.connect(platform.urls.database_url)
            try:
                figures = await conversation(nc, database, platform.urls.environment())
            finally:
                await database.close()
                await nc.close()
    show("conversation", figures)


if __name__ == "__main__":
    asyncio.run(main())
