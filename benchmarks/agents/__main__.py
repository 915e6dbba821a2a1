"""`python -m benchmarks.agents`: what a turn costs beside its model. The offline model answers at zero delay, fsync on.

Prints a table and the machine, and writes `benchmarks/results/agents.json`.
"""

from __future__ import annotations

import asyncio
import os
import platform as machine
import tempfile
import time
from pathlib import Path

import asyncpg
import nats
import orjson
import psutil
from nats.aio.client import Client
from rich.console import Console
from rich.table import Table

from perdure.embedded.platform import Platform
from perdure.embedded.processes import CORE, ProcessSpec
from perdure.settings import Settings

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
LOADS = ((1, 300), (16, 1500), (64, 4000))
LONG = 500


async def turn(nc: Client, session: str, number: int) -> float:
    """One turn; its milliseconds."""
    body = orjson.dumps({"task": f"turn {number}", "session_id": session, "timeout": 60})
    began = time.perf_counter()
    reply = orjson.loads((await nc.request("run.ask.talker", body, timeout=65)).data)
    if reply["status"] != "completed":
        raise RuntimeError(f"turn {number} of {session}: {reply}")
    return (time.perf_counter() - began) * 1000


async def talk(nc: Client, label: str, sessions: int, turns: int) -> dict[str, float]:
    """`turns` turns over `sessions` sessions at a time."""
    took: list[float] = []

    async def one(session: str) -> None:
        took.extend([await turn(nc, session, number) for number in range(turns // sessions)])

    began = time.perf_counter()
    await asyncio.gather(*(one(f"{label}-{at}") for at in range(sessions)))
    seconds = time.perf_counter() - began
    took.sort()
    return {
        "sessions": sessions,
        "turns_per_second": len(took) / seconds,
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
    }


async def long_talk(nc: Client, database: asyncpg.Connection[asyncpg.Record]) -> dict[str, float]:
    """What an early and a late turn of one conversation write, in bytes of WAL, and how long each takes."""
    wal: list[int] = []
    took: list[float] = []
    for number in range(LONG + 10):
        before = await database.fetchval("SELECT pg_current_wal_insert_lsn()")
        took.append(await turn(nc, "long", number))
        wal.append(int(await database.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)))

    def middle(values: list[float], at: int) -> float:
        return sorted(values[at - 5 : at + 5])[5]

    return {
        "wal_turn_5": middle([float(one) for one in wal], 10),
        "wal_turn_500": middle([float(one) for one in wal], LONG),
        "ms_turn_5": middle(took, 10),
        "ms_turn_500": middle(took, LONG),
    }


async def main() -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        settings = Settings(home=Path(home))
        spec = ProcessSpec("agent-talker", (str(HERE / "talker.py"),), tuple(each.name for each in CORE))
        async with Platform(settings, processes=(*CORE, spec), free_ports=True, offline=True) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            database = await asyncpg.connect(platform.urls.database_url)
            await talk(nc, "warm", 4, 40)
            rows = [await talk(nc, f"at-{sessions}", sessions, turns) for sessions, turns in LOADS]
            long = await long_talk(nc, database)
            await database.close()
            await nc.close()
    show(rows, long)


def show(rows: list[dict[str, float]], long: dict[str, float]) -> None:
    table = Table("sessions", "turns/s", "p50 ms", "p99 ms")
    for row in rows:
        table.add_row(
            f"{row['sessions']:.0f}", f"{row['turns_per_second']:,.0f}", f"{row['p50']:.2f}", f"{row['p99']:.2f}"
        )
    about = {
        "machine": machine.platform(),
        "python": machine.python_version(),
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
    }
    Console(width=140).print(table, long, about)
    RESULTS.mkdir(exist_ok=True)
    said = {**about, "rows": rows, "long": long}
    (RESULTS / "agents.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    asyncio.run(main())
