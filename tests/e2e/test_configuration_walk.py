"""The commands of docs/how-to/change-configuration.md, in their order, print what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from perdure.store.platform_files import platform_root
from tests.command import surroundings
from tests.docs import ROOT, blocks
from tests.support import temporary_folder

PAGE = ROOT / "docs" / "how-to" / "change-configuration.md"
TRIES = 40  # of a command that only looks, half a second apart: a rollout takes its time
READS = ("perdure config rollout assistant\n", "perdure config get")


def commands() -> list[tuple[str, str]]:
    """(command, what it prints) for each `$` line of the page."""
    text = "".join(block.text for block in blocks(PAGE) if block.language == "console")
    return list(re.findall(r"^\$ (.+\n)((?:(?!\$ ).*\n)*)", text, re.MULTILINE))


def pattern(printed: str) -> re.Pattern[str]:
    """`…` is anything: on a line of its own any lines, within one any characters."""
    lines = (
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r" *\n" for line in printed.splitlines()
    )
    return re.compile("".join(lines))


async def shell(folder: Path, command: str, **put: str) -> str:
    env = {**surroundings(), "PERDURE_HOME": str(folder / ".perdure"), "PERDURE_AGENTS": "assistant", "COLUMNS": "160"}
    env |= {"PYTHONPATH": str(platform_root()), "NO_COLOR": "1", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", command), cwd=folder, env=env | put, stdout=PIPE, stderr=STDOUT
    )
    out, _ = await process.communicate()
    return out.decode()


async def test_the_walk_of_the_page() -> None:
    assert len(commands()) > 20
    with temporary_folder("config-walk") as folder:
        (folder / "perdure").write_text(f'#!/bin/sh\nexec {sys.executable} -m perdure.cli.main "$@"\n')
        (folder / "perdure").chmod(0o755)
        said = await shell(folder, "perdure up --detach")
        try:
            assert "perdure is ready" in said, said
            for command, printed in commands():
                for _ in range(TRIES):
                    out = await shell(folder, command)
                    if pattern(printed).fullmatch(out) or not command.startswith(READS):
                        break
                    await asyncio.sleep(0.5)
                assert pattern(printed).fullmatch(out), f"$ {command}{out}\nand not\n{printed}"
        finally:
            await shell(folder, "perdure down")
