"""The command `perdure`, as a user at a shell has it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from perdure.embedded.state import read_state
from perdure.store.platform_files import platform_root

READY = b"perdure is ready"
COMMAND = (sys.executable, "-m", "perdure.cli.main")
_OURS = ("NATS_URL", "DATABASE_URL", "REDIS_URL", "OPENAI_", "PERDURE_", "CONSUL_", "PYTHONPATH")
REPLAY = "PERDURE_ALWAYS_REPLAY"  # set under --perdure-always-replay


def surroundings() -> dict[str, str]:
    """The environment without what points at a platform or a model."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS) or name == REPLAY}


def environment(home: Path, **said: str) -> dict[str, str]:
    """The same, with no ready agents, and what is `said`."""
    return {
        **surroundings(),
        "PERDURE_HOME": str(home),
        "PERDURE_AGENTS": "",
        "PYTHONPATH": str(platform_root()),
        **said,
    }


async def perdure(home: Path, *arguments: str, **said: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, output, errors."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, *arguments), stdout=pipe, stderr=pipe, env=environment(home, **said)
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def up(home: Path, **said: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`perdure up` in the foreground, from the moment it says that it is ready."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "up"), stdout=pipe, stderr=pipe, env=environment(home, **said)
    )
    try:
        async with asyncio.timeout(90):
            while True:
                line = await process.stdout.readline()
                assert line, (await process.stderr.read()).decode()
                if line.strip() == READY:
                    break
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.communicate(), 60)


def processes_of(home: Path) -> dict[str, psutil.Process]:
    """The living processes of the platform in `home`, by the name of their part."""
    state = read_state(home)
    found = {part.name: part.running.process() for part in state.parts if part.running}
    return {name: process for name, process in found.items() if process}
