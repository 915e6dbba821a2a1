"""Runs the peers' programs in an environment of their own, on the Postgres that the engine is measured on."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import orjson

PROGRAMS = Path(__file__).parents[1] / "peers"
PEERS = {"DBOS": "dbos_peer.py", "LangGraph": "langgraph_peer.py"}
LOADS = ((1, 50), (64, 300), (256, 600))  # (callers, runs)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer at workload A. Times are milliseconds, CPU is microseconds of its process a step."""

    name: str
    callers: int
    steps_per_second: float
    p50: float
    p99: float
    cpu_per_step: float


async def measure_peers(python: Path, database_url: str, steps: int) -> list[Peer]:
    """Each peer at each load, in a database of its own. Raises `RuntimeError` when one of them fails."""
    found: list[Peer] = []
    for name, program in PEERS.items():
        url = await new_database(database_url, f"peer_{name.lower()}")
        for callers, runs in LOADS:
            said = await run_peer(python, program, url, steps, runs, callers)
            found.append(Peer(name, callers, **said))
    return found


async def new_database(database_url: str, name: str) -> str:
    """Make a database beside the one at `database_url`; its URL."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return urlunsplit(urlsplit(database_url)._replace(path=f"/{name}"))


async def run_peer(python: Path, program: str, url: str, *arguments: int | str) -> dict[str, Any]:
    """Run a program of `benchmarks/peers`; the JSON of its last line. Raises `RuntimeError` when it fails."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(PROGRAMS / program),
        *map(str, arguments),
        env={**os.environ, "DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{program} ended with status {process.returncode}")
    said: dict[str, Any] = orjson.loads(out.splitlines()[-1])
    return said
