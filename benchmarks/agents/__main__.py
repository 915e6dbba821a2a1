"""`python -m benchmarks.agents`: what a turn costs beside its model. The offline model answers at zero delay, fsync on.

Turns at several numbers of sessions, then with more replicas of the agent; turns without the way to any model; turns of
an agent that waits for its model and takes few runs at a time, by replicas; then one long conversation: what its early
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
from benchmarks.own import own_settings
from perdure.embedded.platform import Platform
from perdure.embedded.processes import CORE, ProcessSpec, python_environment

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
LOADS = ((1, 300), (16, 1500), (64, 4000))
REPLICAS = (2, 3)
EARLY, LATE = 5, 500
SECONDS, SLOTS, WAITERS = 0.1, 4, ((1, 32, 200), (2, 32, 400), (3, 32, 600))
LIVE = "SELECT count(*) FROM processes WHERE agent_name = $1 AND state = 'live' AND lease_until > now()"


async def main(peers_python: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        settings = own_settings(home)
        spec = ProcessSpec("agent-talker", (str(HERE / "talker.py"),), tuple(each.name for each in CORE))
        async with Platform(settings, processes=(*CORE, spec), free_ports=True, offline=True) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            database = await asyncpg.connect(platform.urls.database_url)
            pids = {part.name: part.running.pid for part in platform.state.parts if part.running}
            bench, environment = Bench(nc, database, pids), platform.urls.environment()
            try:
                await bench.talk("warm", 4, 40)
                talks = [await bench.talk(f"at-{sessions}", sessions, turns) for sessions, turns in LOADS]
                for number in REPLICAS:
                    async with replicas(bench, environment, "talker", range(2, number + 1)):
                        talks.append(await bench.talk(f"with-{number}", *LOADS[-1], replicas=number))
                at_once = {**environment, "MODEL_SECONDS": "0"}
                async with replicas(bench, at_once, "waiter", range(1, 2)):
                    bare = await bench.talk("bare", *LOADS[0], agent="waiter")
                waits = []
                for number, sessions, turns in WAITERS:
                    few = {**environment, "MODEL_SECONDS": str(SECONDS), "PERDURE_RUN_SLOTS": str(SLOTS)}
                    async with replicas(bench, few, "waiter", range(1, number + 1)):
                        label = f"waiting-{number}"
                        waits.append(await bench.talk(label, sessions, turns, replicas=number, agent="waiter"))
                long, answer = await bench.long_talk(LATE + 6)
                kept = {"Perdure": long}
                if peers_python is not None:
                    url = await new_database(platform.urls.database_url, "peer_langgraph_talk")
                    kept["LangGraph"] = await run_peer(peers_python, "langgraph_talk.py", url, LATE + 6, answer)
                alone = await model_alone(environment)
            finally:
                await database.close()
                await nc.close()
    show(talks, bare, waits, {name: early_and_late(**turns) for name, turns in kept.items()}, alone)


@asynccontextmanager
async def replicas(bench: Bench, environment: dict[str, str], agent: str, numbers: range) -> AsyncIterator[None]:
    """Replicas of `agent` with these numbers, beside those that there are; they are gone when it is over."""
    started: dict[str, Process] = {}
    before = await bench.database.fetchval(LIVE, agent)
    try:
        for at in numbers:
            said = python_environment({**environment, "PERDURE_INSTANCE_ID": f"{agent}-{at}"})
            program = [sys.executable, str(HERE / f"{agent}.py")]
            started[f"{agent}-{at}"] = await asyncio.create_subprocess_exec(*program, env=said, stdout=DEVNULL)
        bench.pids |= {name: process.pid for name, process in started.items()}
        while await bench.database.fetchval(LIVE, agent) < before + len(started):
            if ended := [name for name, process in started.items() if process.returncode is not None]:
                raise RuntimeError(f"{', '.join(ended)} did not start")
            await asyncio.sleep(0.05)
        await bench.talk(f"warm-{agent}-{numbers.stop}", 8, 80, agent=agent)
        yield
    finally:
        for name, process in started.items():
            if process.returncode is None:
                process.terminate()
            await process.wait()
            bench.pids.pop(name, None)
        while await bench.database.fetchval(LIVE, agent) > before:
            await asyncio.sleep(0.05)


def early_and_late(ms: list[float], wal: list[int]) -> dict[str, float]:
    """The middle of some turns around an early and a late one."""

    def middle(values: list[Any], at: int) -> float:
        return float(sorted(values[at - 4 : at + 5])[4])

    return {
        "wal_early": middle(wal, EARLY), "wal_late": middle(wal, LATE),
        "ms_early": middle(ms, EARLY), "ms_late": middle(ms, LATE),
    }  # fmt: skip


def show(talks: list[Talk], bare: Talk, waits: list[Talk], kept: dict[str, dict[str, float]], alone: float) -> None:
    table = Table(
        *("model", "sessions", "replicas", "turns/s", "p50 ms", "p99 ms", "commits a turn", "agents' CPU ms a turn"),
        *("all CPU ms a turn", "CPU of the machine"),
    )
    for model, one in (("none", bare), *(("offline", one) for one in talks)):
        table.add_row(
            *(model, str(one.sessions), str(one.replicas), f"{one.turns_per_second:,.0f}", f"{one.p50:.2f}"),
            *(f"{one.p99:.2f}", f"{one.commits_per_turn:.2f}", f"{one.agents_cpu:.2f}", f"{one.all_cpu:.2f}"),
            f"{one.machine:.0%}",
        )
    waiting = Table(f"replicas of {SLOTS} runs at a time", "turns/s", "p50 ms", "CPU of the machine")
    for one in waits:
        waiting.add_row(str(one.replicas), f"{one.turns_per_second:,.0f}", f"{one.p50:.0f}", f"{one.machine:.0%}")
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
    Console(width=140).print(table, waiting, long, about)
    RESULTS.mkdir(exist_ok=True)
    said = {
        **about,
        "rows": [one.as_dict() for one in talks],
        "waiting": [one.as_dict() for one in waits],
        "long": kept,
    }
    (RESULTS / "agents.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="let LangGraph talk beside it, with this Python")
    asyncio.run(main(parser.parse_args().peers))
