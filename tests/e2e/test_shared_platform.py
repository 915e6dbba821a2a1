from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest
from redis.asyncio import Redis

from perdure.embedded.ensure import ensure_platform
from perdure.embedded.platform import Platform
from perdure.embedded.processes import ProcessSpec
from perdure.embedded.state import PlatformUrls, find_running, read_state, running_state
from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.platform_files import platform_root
from tests.support import eventually, temporary_folder

FAKE = ProcessSpec("service", (str(Path(__file__).with_name("fake_service.py")),))
USER = """
import asyncio, sys
from perdure.embedded.ensure import ensure_platform
from perdure.settings import Settings

async def main():
    urls, hold = await ensure_platform(Settings(), processes=[])
    print(urls.redis_url, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await hold.stop()

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("shared") as folder:
        yield folder


async def user(home: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Another program that uses the platform of this home, until it reads a line; and where it found Redis."""
    mine = ("NATS_URL", "DATABASE_URL", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    environment = {**kept, "PERDURE_HOME": str(home), "PYTHONPATH": str(platform_root())}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", USER, stdin=pipe, stdout=pipe, env=environment)
    return process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def answers(urls: PlatformUrls) -> bool:
    async with Redis.from_url(urls.redis_url) as redis:
        return bool(await redis.ping())


def all_processes(home: Path) -> list[psutil.Process]:
    supervisor = running_state(home).supervisor.process()
    return [supervisor, *supervisor.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


async def test_the_last_of_two_users_ends_the_platform_and_waits_for_it(home: Path):
    urls, first = await ensure_platform(Settings(home=home), processes=[FAKE])
    assert {part.name for part in read_state(home).parts} >= {"nats", "postgres", "redis", "service"}
    same, second = await ensure_platform(Settings(home=home), processes=[FAKE])
    assert same == urls
    processes = all_processes(home)
    await first.stop()
    assert await answers(urls)
    assert find_running(home) == urls
    await second.stop()
    assert gone(processes)
    assert find_running(home) is None
    await second.stop()


async def test_a_program_that_started_it_may_end_before_another_that_uses_it(home: Path):
    starter, redis_url = await user(home)
    urls, hold = await ensure_platform(Settings(home=home), processes=[])
    assert urls.redis_url == redis_url
    starter.stdin.write(b"\n")
    assert await starter.wait() == 0
    assert await answers(urls)
    await hold.stop()
    assert find_running(home) is None


async def test_the_platform_ends_when_its_last_user_is_killed(home: Path):
    last, _ = await user(home)
    processes = all_processes(home)
    last.kill()
    await last.wait()
    await eventually(lambda: gone(processes), timeout=30)
    assert read_state(home) is None


async def test_two_that_start_at_the_same_moment_share_one(home: Path):
    (urls, first), (same, second) = await asyncio.gather(
        *(ensure_platform(Settings(home=home), processes=[]) for _ in range(2))
    )
    assert urls == same
    await asyncio.gather(first.stop(), second.stop())
    assert find_running(home) is None


async def test_one_that_comes_while_the_last_leaves_gets_a_platform_that_stays(home: Path):
    _, first = await ensure_platform(Settings(home=home), processes=[])
    leaving = asyncio.ensure_future(first.stop())
    urls, second = await ensure_platform(Settings(home=home), processes=[])
    await leaving
    assert await answers(urls)
    await second.stop()


async def test_a_platform_started_by_hand_outlives_its_users(home: Path):
    settings = Settings(home=home)
    async with Platform(settings, processes=(), free_ports=True, offline=False, fast=True) as platform:
        urls, hold = await ensure_platform(settings, processes=[])
        assert urls == platform.urls
        await hold.stop()
        assert await answers(urls)


async def test_why_a_shared_platform_does_not_start_is_told_to_the_program_that_wanted_it(home: Path):
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("18\n")
    with pytest.raises(SetupError, match=r"made by Postgres 18.*Nothing was changed.*DATABASE_URL"):
        await ensure_platform(Settings(home=home), processes=[])
    assert running_state(home) is None


async def test_up_says_who_has_the_home_and_down_ends_a_shared_platform(home: Path):
    _, hold = await ensure_platform(Settings(home=home), processes=[])
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    environment = {**kept, "PERDURE_HOME": str(home), "PYTHONPATH": str(platform_root())}
    command = (sys.executable, "-m", "perdure.cli.main")
    pipe = asyncio.subprocess.PIPE
    up = await asyncio.create_subprocess_exec(*command, "up", stderr=pipe, env=environment)
    assert b"it ends with the last program that uses it" in (await up.communicate())[1]
    status = await asyncio.create_subprocess_exec(*command, "status", "-o", "json", stdout=pipe, env=environment)
    assert orjson.loads((await status.communicate())[0])["shared"] is True
    down = await asyncio.create_subprocess_exec(*command, "down", stdout=pipe, env=environment)
    assert (await down.communicate())[0].strip() == b"stopped"
    await hold.stop()
