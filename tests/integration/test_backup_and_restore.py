"""The commands of docs/how-to/back-up-and-restore.md, on real servers: a dump, a restore, and runs that go on."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest
from nats.aio.client import Client

from perdure import BaseAgent, workflow
from perdure.doctor import examine
from perdure.embedded import binaries
from perdure.embedded.nats_server import NatsServer
from perdure.embedded.redis_server import RedisServer
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from tests.docs import ROOT, blocks
from tests.platform import in_process
from tests.support import Servers, eventually, temporary_folder

WALK = {block.name: block.text for block in blocks(ROOT / "docs" / "how-to" / "back-up-and-restore.md") if block.kind}
DONE: list[str] = []  # steps that were really done, in this process


async def note(what: str) -> str:
    DONE.append(what)
    return what


class Ledger(BaseAgent):
    name = "ledger"

    @workflow
    async def run(self, ctx: Any, task: Any) -> str:
        await ctx.step("before", note, f"before {task}")
        if task != "at once":
            await ctx.wait_signal("go")
        return str(await ctx.step("after", note, f"after {task}"))


@pytest.fixture
def tools() -> Path:
    """Postgres' own programs, of the wheel that carries its server."""
    folder = binaries.postgres_folder()
    if missing := [name for name in ("pg_dump", "pg_restore", "createdb") if not (folder / name).is_file()]:
        pytest.skip(f"the wheel has no {', '.join(missing)} here")
    return folder


async def shell(name: str, tools: Path, folder: Path, **said: str) -> str:
    """Run a block of the page."""
    script = WALK[name]
    perdure = f'perdure() {{ "{sys.executable}" -m perdure.cli.main "$@"; }}'
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-euc", f"{perdure}\n{script}"),
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(platform_root()),
            **said,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, f"{script}\n{out.decode()}"
    return out.decode()


async def test_a_restored_platform_goes_on_where_the_backup_was_made(
    settings: Settings, servers: Servers, nc: Client, pool: asyncpg.Pool, tools: Path
):
    database = f"{servers.postgres.database}_restored"
    url = settings.database_url
    restored = url.replace(servers.postgres.database, database)
    with temporary_folder("backup") as folder:
        async with in_process(settings, nc, Ledger) as platform:
            assert (await platform.ask("ledger", "at once"))["output"] == "after at once"
            for text in ("a bookkeeper", "an accountant"):
                await platform.request("config.set.ledger", {"configurations": {"agent_role": text}})
            waiting = await platform.start_run("ledger", "later", run_id="waiting")

            async def waits() -> bool:
                return (await platform.run(waiting))["status"] == "waiting"

            await eventually(waits)
            await shell("dump", tools, folder, DATABASE_URL=url)
            # What comes after the backup is lost with it.
            await platform.request("config.set.ledger", {"configurations": {"agent_role": "a forger"}})
            await platform.start_run("ledger", "too late", run_id="too-late")
        new_nats, new_redis = NatsServer(folder), RedisServer(folder)
        await asyncio.gather(new_nats.start(), new_redis.start())
        try:
            admin = url.replace(f"/{servers.postgres.database}", "/postgres")
            script = WALK["restore"]
            assert shlex.split(script)[3] == "perdure_restored"
            WALK["restore"] = script.replace("perdure_restored", database)  # other tests share this server
            await shell("restore", tools, folder, SERVER_URL=admin, RESTORED_URL=restored)
            assert "up to date" in await shell("check", tools, folder, RESTORED_URL=restored)
            there = settings.model_copy(
                update={"database_url": restored, "nats_url": new_nats.url, "redis_url": new_redis.url}
            )
            client = await nats.connect(new_nats.url)
            DONE.clear()
            try:
                async with in_process(there, client, Ledger) as platform:
                    assert (await platform.request("config.get.ledger", {}))["configurations"]["agent_role"] == (
                        "an accountant"
                    )
                    await platform.request("run.signal", {"run_id": waiting, "name": "go"})

                    async def ended() -> bool:
                        return (await platform.run(waiting))["status"] == "completed"

                    await eventually(ended, timeout=30)
                    assert DONE == ["after later"], "what was recorded is not done again"
                    assert (await platform.ask("ledger", "at once"))["output"] == "after at once"
                    assert not [each for each in await examine(there) if each.status == "error"]
            finally:
                await client.close()
        finally:
            await asyncio.gather(new_nats.kill(), new_redis.kill())
            await pool.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
