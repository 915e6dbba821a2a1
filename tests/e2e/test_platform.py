from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from perdure.embedded import platform as platform_module
from perdure.embedded.platform import Platform
from perdure.embedded.processes import ProcessSpec
from perdure.embedded.state import AlreadyRunning, find_running, read_state, running_state
from perdure.errors import SetupError
from perdure.settings import Settings
from tests.support import eventually, temporary_folder

FAKE = Path(__file__).with_name("fake_service.py")
SERVICE = ProcessSpec("service", (str(FAKE),))
AGENT = ProcessSpec("agent-fake", (str(FAKE),), after=("service",))


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("home") as folder:
        yield folder


def make(home: Path, **said: object) -> Platform:
    options = {"processes": (SERVICE, AGENT), "free_ports": True, "offline": False, "fast": True, **said}
    settings = said.pop("settings", None) or Settings(home=home)
    options.pop("settings", None)
    return Platform(settings, **options)


def pids_of(home: Path) -> dict[str, int]:
    state = read_state(home)
    return {part.name: part.running.pid for part in state.parts if part.running}


async def test_it_starts_all_and_leaves_no_process(home: Path):
    async with make(home) as platform:
        assert find_running(home) == platform.urls
        pids = pids_of(home)
        assert set(pids) == {"nats", "postgres", "redis", "service", "agent-fake"}
        assert all(psutil.pid_exists(pid) for pid in pids.values())
    assert find_running(home) is None
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


async def test_a_second_start_finds_its_data_again(home: Path):
    async with make(home, processes=()) as platform:
        connection = await asyncpg.connect(platform.urls.database_url)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        await connection.close()
        redis = Redis.from_url(platform.urls.redis_url)
        await redis.set("kept", b"yes")
        await redis.aclose()
    async with make(home, processes=()) as platform:
        connection = await asyncpg.connect(platform.urls.database_url)
        assert await connection.fetchval("SELECT n FROM kept") == 7
        await connection.close()
        redis = Redis.from_url(platform.urls.redis_url)
        assert await redis.get("kept") == b"yes"
        await redis.aclose()


async def test_a_port_that_was_taken_after_it_was_looked_at_is_another_ones(home: Path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        # Free at each look, as with a program that takes it in between and has given it back by the second look.
        monkeypatch.setattr("perdure.embedded.supervised.is_free", lambda _port: True)
        door = ProcessSpec("door", (str(FAKE),), port=taken, port_variable="FAKE_PORT")
        async with make(home, processes=(door,), free_ports=False):
            (part,) = [part for part in read_state(home).parts if part.name == "door"]
            assert part.url != f"http://127.0.0.1:{taken}"
            assert f"port {taken} is taken" in part.note


@pytest.mark.parametrize("name", ["redis", "service"])
async def test_a_part_that_was_killed_is_started_again_and_said_so(home: Path, name: str):
    said: list[str] = []
    async with make(home, say=said.append):
        before = pids_of(home)[name]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: any(line.startswith(f"{name} runs again") for line in said), timeout=30)
        assert pids_of(home)[name] != before
        assert f"{name} was ended by signal 9; it is started again in 0.2 s" in said


async def test_a_taken_default_port_is_replaced_and_said_so(home: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(platform_module, "DEFAULT_PORTS", {**platform_module.DEFAULT_PORTS, "redis": port})
        given = Settings(home=home, nats_url="nats://127.0.0.1:1", database_url="postgresql://127.0.0.1:1/x")
        platform = make(home, settings=given, processes=(), free_ports=False)
        await platform._start_servers()
        try:
            part = next(part for part in platform_parts(platform) if part.name == "redis")
            assert part.note == f"port {port} is taken, uses {part.url.rpartition(':')[2].partition('/')[0]}"
        finally:
            await platform.stop()


def platform_parts(platform: Platform):
    return [platform_module._part(part) for part in platform._parts]


async def test_a_second_platform_in_a_home_is_refused_and_the_first_lives_on(home: Path):
    async with make(home, processes=()) as platform:
        with pytest.raises(AlreadyRunning, match="perdure down"):
            await make(home, processes=()).start()
        assert find_running(home) == platform.urls


async def test_a_data_folder_of_another_version_is_refused_and_not_touched(home: Path):
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("18\n")
    with pytest.raises(SetupError, match=r"made by Postgres 18.*Nothing was changed"):
        await make(home, processes=()).start()
    assert [path.name for path in (home / "postgres").iterdir()] == ["PG_VERSION"]
    assert running_state(home) is None


async def test_a_given_database_that_is_not_there_is_named(home: Path):
    settings = Settings(home=home, database_url="postgresql://me:secret@127.0.0.1:9/none")
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9/none.*DATABASE_URL") as error:
        await make(home, settings=settings, processes=()).start()
    assert "secret" not in str(error.value)


async def test_a_process_that_ends_at_once_fails_the_start_with_its_own_words(home: Path):
    broken = ProcessSpec("broken", (str(FAKE), "no reason"))
    before = pids_below()  # the servers of this worker's other tests
    with pytest.raises(SetupError, match=r"broken ended with exit code 1: cannot work: no reason"):
        await make(home, processes=(broken,)).start()
    assert pids_below() == before


async def test_what_a_killed_supervisor_left_is_ended_by_the_next_start(home: Path):
    async with make(home, processes=()):
        left = read_state(home)
        orphan = await asyncio.create_subprocess_exec("sleep", "1000")
        part = left.parts[0].__class__("nats", left.supervisor.of(orphan.pid))
    platform_module.write_state(home, left.with_parts((part,)))
    said: list[str] = []
    async with make(home, processes=(), say=said.append):
        assert await orphan.wait() == -signal.SIGTERM
        assert "nats was left over from a start that was killed: ended it" in said


def pids_below() -> list[int]:
    return [child.pid for child in psutil.Process().children() if child.name() != "postgres"]
