"""The five minutes of the README, executed: its commands and its files, as they stand there.

A block after `<!-- walk: name -->` is run by a shell in a folder that looks like a checkout after `make setup`, a block
after `<!-- file: name -->` is written to that file.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perdure.store.platform_files import platform_root
from tests.command import surroundings
from tests.docs import ROOT, blocks
from tests.support import eventually, temporary_folder

HTTP = ROOT / "docs" / "how-to" / "use-http.md"
WALK = {block.name: block.text for page in (ROOT / "README.md", HTTP) for block in blocks(page) if block.kind == "walk"}
FILES = {block.name: block.text for block in blocks(ROOT / "README.md") if block.kind == "file"}
POINTED, _, _ = WALK["ask over NATS"].partition("\n")  # what points a terminal at the platform
PSQL = """\
import asyncio, asyncpg, sys

async def main():
    connection = await asyncpg.connect(sys.argv[1])
    print(await connection.execute(sys.argv[3]))
    await connection.close()

assert sys.argv[2] == "-c"
asyncio.run(main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A checkout, as far as the README's commands see it, and a `psql`, which no wheel has."""
    with temporary_folder("walk") as made:
        for name, text in FILES.items():
            (made / name).write_text(text)
        (made / "psql.py").write_text(PSQL)
        for program, command in {
            ".venv/bin/perdure": f"{sys.executable} -m perdure.cli.main",
            ".venv/bin/python": sys.executable,
            "bin/psql": f"{sys.executable} {made / 'psql.py'}",
        }.items():
            path = made / program
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            path.chmod(0o755)
        yield made


async def shell(folder: Path, script: str, *, err: int = PIPE) -> Process:
    # The walk needs one of the two ready agents.
    said = {"PERDURE_AGENTS": "assistant", "PYTHONPATH": str(platform_root()), "COLUMNS": "200"}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**surroundings(), **said, "PATH": path}
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-euc", script), cwd=folder, env=env, stdout=PIPE, stderr=err
    )


async def walk(folder: Path, name: str, *, pointed: bool = True, **put: str) -> str:
    """What the README's commands under `name` print; `put` are words to put in the place of others."""
    script = WALK[name]
    for word, value in put.items():
        assert word in script
        script = script.replace(word, value)
    process = await shell(folder, f"{POINTED}\n{script}" if pointed else script)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, f"{script}\n{out.decode()}\n{err.decode()}"
    return out.decode()


@asynccontextmanager
async def running(folder: Path, script: str) -> AsyncIterator[list[str]]:
    """A command that stays, in a terminal of its own: the lines that it prints, as they come."""
    process = await shell(folder, f"exec {script}", err=STDOUT)
    lines: list[str] = []

    async def read() -> None:
        async for line in process.stdout:
            lines.append(line.decode().rstrip("\n"))  # noqa: PERF401 -- seen while it grows

    reading = asyncio.create_task(read())
    try:
        yield lines
    except BaseException as error:
        error.add_note(f"{script} (exit code {process.returncode}) had printed:\n" + "\n".join(lines))
        raise
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)
        await reading


def answer(text: str) -> str:
    """The role in which the offline model answers."""
    return re.findall(r"As (.+?), I heard", text)[-1]


def counted(lines: list[str]) -> list[tuple[int, int]]:
    """(process, number) for each number that an agent has squared."""
    return [(int(m[1]), int(m[2])) for line in lines if (m := re.fullmatch(r"process (\d+): (\d+) squared", line))]


async def test_the_walk_of_the_readme(folder: Path):
    assert "\n\t@exec $(VENV)/bin/perdure up\n" in (ROOT / "Makefile").read_text()  # what `make run` does
    async with running(folder, ".venv/bin/perdure up") as platform:
        await eventually(lambda: "perdure is ready" in platform, timeout=90)

        first = answer(await walk(folder, "ask", pointed=False))
        assert answer(await walk(folder, "ask over NATS", pointed=False)) == first
        assert answer(await walk(folder, "configure")) == "a kind librarian" != first
        changed = await walk(folder, "configure by SQL")
        assert answer(changed) == "a pirate"
        assert "a kind librarian" in changed

        async with running(folder, WALK["replicas"].strip()) as agent:
            await eventually(lambda: sum("service.ready" in line for line in agent) == 2, timeout=60)
            await walk(folder, "start")
            await eventually(lambda: len(counted(agent)) == 3)
            before = counted(agent)
            await walk(folder, "kill", pointed=False, PID=str(before[0][0]))  # at once, before it is through
            result = await walk(folder, "result")
        assert "385" in result.splitlines()
        assert "completed" in result
        done = counted(agent)
        assert {process for process, _ in done} == {before[0][0], done[-1][0]}
        assert done[0][0] != done[-1][0], "the process that was killed did all of it"
        assert {number for _, number in done} == set(range(1, 11))
        assert len(done) <= 11, "more than the step under way was done again"

        assert "Rome: sunny, 24 °C" in await walk(folder, "weather")
        await walk_over_http(folder)
    assert not any("Traceback" in line for line in platform)


async def walk_over_http(folder: Path) -> None:
    """The page about HTTP, on the platform of the README's walk."""
    assert '"name":"assistant"' in await walk(folder, "http", pointed=False)
    started = [await walk(folder, "http start") for _ in range(2)]
    assert '"status":"completed"' in started[0]
    assert started[0] == started[1]
    first, again = (await walk(folder, "http follow")).split("event: run.completed")[:2]
    assert "id: 0\nevent: run.started" in first
    assert "event: step.completed" in first
    assert "id: 1\n" not in again
    talk = await walk(folder, "http talk")
    assert '"content":"My name is Ada."' in talk
    assert '"session_id":"talk-1"' in talk
    assert "a stargazer" in await walk(folder, "http configure")
    told = await walk(folder, "http keys")
    assert told.count('"code":"unauthorized"') == 2
    assert '"next_cursor"' in told
    assert "ada" in told
