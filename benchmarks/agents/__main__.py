"""`python -m benchmarks.agents`: what a turn costs beside its model. The offline model answers at zero delay, fsync on.

Turns at several numbers of sessions, then with more replicas of the agent, then one long conversation: what its early
and its late turns write. With `--peers PYTHON` (`make peers`) LangGraph holds the same long conversation beside it.
Prints tables and the machine, and writes `benchmarks/results/agents.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform as machine
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import nats
import orjson
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.agents.talking import Bench, Talk, model_alone
from benchmarks.engine.peers import new_database, run_peer
from perdure.embedded.platform import Platform
from perdure.embedded.processes import CORE, ProcessSpec, python_environment
from perdure.settings import Settings

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
LOADS = ((1, 300), (16, 1500), (64, 4000))
REPLICAS = (2, 3)
EARLY, LATE = 5, 500
LIVE = "SELECT count(*) FROM processes WHERE agent_name = 'talker' AND state = 'live' AND lease_until > now()"


async def main(peers_python: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        settings = Settings(home=Path(home))
        spec = ProcessSpec("agent-talker", (str(HERE / "talker.py"),), tuple(each.name for each in CORE))
        async with Platform(settings, processes=(*CORE, spec), free_ports=True, offline=True) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            database = await asyncpg.connect(platform.urls.database_url)
            pids = {part.name: part.running.pid for part in platform.state.parts if part.running}
            bench = Bench(nc, database, pids)
            try:
                await bench.talk("warm", 4, 40)
                talks = [await bench.talk(f"at-{sessions}", sessions, turns) for sessions, turns in LOADS]
                for number in REPLICAS:
                    async with replica(bench, platform.urls.environment(), number):
                        talks.append(await bench.talk(f"with-{number}", *LOADS[-1], replicas=number))
                await one_replica(database)
                long, answer = await bench.long_talk(LATE + 6)
                kept = {"Perdure": long}
                if peers_python is not None:
                    url = await new_database(platform.urls.database_url, "peer_langgraph_talk")
                    kept["LangGraph"] = await run_peer(peers_python, "langgraph_talk.py", url, LATE + 6, answer)
                alone = await model_alone(platform.urls.environment())
            finally:
                await database.close()
                await nc.close()
    show(talks, {name: early_and_late(**turns) for name, turns in kept.items()}, alone)


@asynccontextmanager
async def replica(bench: Bench, urls: dict[str, str], number: int) -> AsyncIterator[None]:
    """The talkers `2` to `number`, beside the first."""
    started: list[Process] = []
    try:
        for at in range(2, number + 1):
            environment = python_environment({**urls, "PERDURE_INSTANCE_ID": f"talker-{at}"})
            program = [sys.executable, str(HERE / "talker.py")]
            started.append(await asyncio.create_subprocess_exec(*program, env=environment, stdout=DEVNULL))
            bench.pids[f"talker-{at}"] = started[-1].pid
        while await bench.database.fetchval(LIVE) < number:
            await asyncio.sleep(0.05)
        await bench.talk(f"warm-{number}", 8, 80)
        yield
    finally:
        for process in started:
            process.terminate()
            await process.wait()
        for at in range(2, number + 1):
            bench.pids.pop(f"talker-{at}", None)


async def one_replica(database: asyncpg.Connection[asyncpg.Record]) -> None:
    """Come back when the other replicas are gone."""
    while await database.fetchval(LIVE) > 1:
        await asyncio.sleep(0.05)


def early_and_late(ms: list[float], wal: list[int]) -> dict[str, float]:
    """The middle of some turns around an early and a late one."""

    def middle(values: list[Any], at: int) -> float:
        return float(sorted(values[at - 4 : at + 5])[4])

    return {
        "wal_early": middle(wal, EARLY), "wal_late": middle(wal, LATE),
        "ms_early": middle(ms, EARLY), "ms_late": middle(ms, LATE),
    }  # fmt: skip


def show(talks: list[Talk], kept: dict[str, dict[str, float]], alone: float) -> None:
    table = Table(
        *("sessions", "replicas", "turns/s", "p50 ms", "p99 ms", "commits a turn", "agents' CPU ms a turn"),
        *("all CPU ms a turn", "CPU of the machine"),
    )
    for one in talks:
        table.add_row(
            *(str(one.sessions), str(one.replicas), f"{one.turns_per_second:,.0f}", f"{one.p50:.2f}"),
            *(f"{one.p99:.2f}", f"{one.commits_per_turn:.2f}", f"{one.agents_cpu:.2f}", f"{one.all_cpu:.2f}"),
            f"{one.machine:.0%}",
        )
    long = Table("one conversation", f"WAL of turn {EARLY}", f"of turn {LATE}", "ratio", "ms", "ms", "ratio")
    for name, turn in kept.items():
        long.add_row(
            *(name, f"{turn['wal_early']:,.0f} B", f"{turn['wal_late']:,.0f} B"),
            *(f"{turn['wal_late'] / turn['wal_early']:.2f}", f"{turn['ms_early']:.2f}", f"{turn['ms_late']:.2f}"),
            f"{turn['ms_late'] / turn['ms_early']:.2f}",
        )
    about = {
        "machine": machine.platform(),
        "python": machine.python_version(),
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
        "model alone, p50 ms": round(alone, 2),
    }
    Console(width=140).print(table, long, about)
    RESULTS.mkdir(exist_ok=True)
    said = {**about, "rows": [one.as_dict() for one in talks], "long": kept}
    (RESULTS / "agents.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="let LangGraph talk beside it, with this Python")
    asyncio.run(main(parser.parse_args().peers))
