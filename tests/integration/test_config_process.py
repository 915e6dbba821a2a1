"""`python -m config_manager` alone, by nothing but environment variables."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tests.config_support import PUT, ask, messages
from tests.support import eventually


async def start(settings):
    environment = {**os.environ, "NATS_URL": settings.nats_url, "DATABASE_URL": settings.database_url}
    environment["REDIS_URL"] = settings.redis_url
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "config_manager",
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def answers(nc) -> bool:
    try:
        return (await ask(nc, "config.get.assistant"))["status"] == "success"
    except Exception as error:
        raise AssertionError("not yet") from error


async def test_it_runs_alone_and_a_kill_9_loses_no_change(settings, nc, pool) -> None:
    updates = await messages(nc, "config.update")
    first = await start(settings)
    try:
        await eventually(lambda: answers(nc), timeout=30)
        await pool.execute(PUT, "assistant", "k", "1")
        await eventually(lambda: updates and updates[-1]["revision"] == 1)
    finally:
        first.send_signal(signal.SIGKILL)
        await first.communicate()
    await pool.execute(PUT, "assistant", "k", "2")
    second = await start(settings)
    try:
        await eventually(lambda: updates[-1]["revision"] == 2, timeout=30)
    finally:
        second.send_signal(signal.SIGTERM)
        await second.communicate()
    assert second.returncode == 0


async def test_a_database_that_was_not_migrated_is_said_with_the_fix(settings, nc, pool) -> None:
    await pool.execute("DROP TABLE agent_configurations CASCADE")
    process = await start(settings)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"perdure migrate" in said
