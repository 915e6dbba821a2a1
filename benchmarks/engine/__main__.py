"""`python -m benchmarks.engine`: the durable engine beside a bare prototype, on one Postgres with fsync on.

Then 500 turns of a growing conversation (workload D). Prints tables with ratios and the machine, and writes
`benchmarks/results/engine.json`. With `--peers PYTHON`, an environment that has what requirements-peers.lock says
(`make peers`), DBOS and LangGraph run workload A beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform as machine
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import asyncpg
import nats
import orjson
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.engine.conversation import conversation
from benchmarks.engine.goals import Figure, for_json, table_of
from benchmarks.engine.load import Measured, measure
from benchmarks.engine.peers import Peer, measure_peers
from benchmarks.own import own_settings
from perdure.embedded.platform import Platform
from perdure.embedded.processes import CORE, ProcessSpec

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
# (name, workflow, steps a run, ((callers, runs), …)): enough runs for a few seconds each.
WORKLOADS = (
    ("A: 10 steps in a row", "run", 10, ((1, 200), (64, 3000), (256, 5000))),
    ("B: 1 step", "run", 1, ((256, 8000),)),
    ("C: 100 steps at once", "fan", 100, ((16, 400),)),
)


async def main(peers_python: Path | None) -> None:
    rows: list[tuple[Measured, Measured | None]] = []
    peers: list[Peer] = []
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        settings = own_settings(home)
        bench = ProcessSpec("agent-bench", (str(HERE / "agent.py"),), tuple(each.name for each in CORE))
        async with Platform(settings, processes=(*CORE, bench), free_ports=True, offline=False) as platform:
            state = platform.state
            pid = next(part.running.pid for part in state.parts if part.name == "agent-bench" and part.running)
            environment = {**os.environ, **platform.urls.environment()}
            prototype = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / "prototype.py"), env=environment
            )
            nc = await nats.connect(platform.urls.nats_url)
            database = await asyncpg.connect(platform.urls.database_url)
            try:
                for name, workflow, steps, loads in WORKLOADS:
                    for callers, runs in loads:
                        payload = {"task": {"steps": steps}, "workflow": workflow, "timeout": 100}
                        shared = {"what": name, "payload": payload, "steps": steps, "runs": runs, "callers": callers}
                        ours = await measure(nc, database, subject="run.ask.bench", pid=pid, **shared)
                        bare = None
                        if workflow == "run":
                            bare = await measure(nc, database, subject="proto.ask", pid=prototype.pid, **shared)
                        rows.append((ours, bare))
                figures = await conversation(nc, database, platform.urls.environment())
            finally:
                await database.close()
                await nc.close()
                prototype.terminate()
                await prototype.wait()
            if peers_python is not None:
                peers = await measure_peers(peers_python, platform.urls.database_url, 10)
    show(rows, peers, figures)


def show(rows: list[tuple[Measured, Measured | None]], peers: list[Peer], figures: list[Figure]) -> None:
    table = Table(
        *("workload", "callers", "steps/s", "runs/s", "p50 ms", "p99 ms", "commits/run"),
        *("CPU us/step", "bare CPU", "of bare"),
    )
    for ours, bare in rows:
        table.add_row(
            ours.what,
            str(ours.callers),
            f"{ours.steps_per_second:,.0f}",
            f"{ours.runs_per_second:,.0f}",
            f"{ours.p50:.2f}",
            f"{ours.p99:.2f}",
            f"{ours.commits_per_run:.2f}",
            f"{ours.cpu_per_step:.0f}",
            f"{bare.cpu_per_step:.0f}" if bare else "",
            f"{ours.steps_per_second / bare.steps_per_second:.0%}" if bare else "",
        )
    by_callers = {ours.callers: ours for ours, _ in rows if ours.what == WORKLOADS[0][0]}
    beside = Table("peer, workload A", "callers", "steps/s", "p50 ms", "p99 ms", "CPU us/step", "ours is")
    for peer in peers:
        ours = by_callers[peer.callers]
        beside.add_row(
            peer.name,
            str(peer.callers),
            f"{peer.steps_per_second:,.0f}",
            f"{peer.p50:.2f}",
            f"{peer.p99:.2f}",
            f"{peer.cpu_per_step:.0f}",
            f"{ours.steps_per_second / peer.steps_per_second:.1f} x",
        )
    about = {
        "machine": machine.platform(),
        "python": machine.python_version(),
        "cores": psutil.cpu_count(),
        "load": os.getloadavg()[0],
    }
    Console(width=140).print(table, table_of(figures), *([beside] if peers else []), about)
    RESULTS.mkdir(exist_ok=True)
    said = [{"ours": ours.as_dict(), "bare": bare and bare.as_dict()} for ours, bare in rows]
    whole = {**about, "rows": said, "peers": [asdict(peer) for peer in peers]}
    whole["figures"] = for_json(figures)
    (RESULTS / "engine.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="measure the peers too, with this Python")
    asyncio.run(main(parser.parse_args().peers))
