from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil
import pytest

from perdure.embedded.state import read_state
from tests.command import READY, perdure, processes_of, up
from tests.support import eventually, temporary_folder


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("up") as folder:
        yield folder


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_ready_and_leaves_no_process(home: Path, how: signal.Signals):
    async with up(home) as supervisor:
        parts = processes_of(home)
        servers = {"nats", "postgres", "redis", "offline-model"}
        assert set(parts) == servers | {"config_manager", "scheduler", "gateway", "console"}
        below = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.send_signal(how)
        await asyncio.wait_for(supervisor.communicate(), 60)
        assert supervisor.returncode == 0
        assert [process for process in below if process.is_running()] == []
        assert read_state(home) is None


async def test_status_tells_where_it_is_in_three_forms(home: Path):
    async with up(home):
        code, table, _ = await perdure(home, "status")
        assert code == 0
        assert "config_manager" in table
        code, text, _ = await perdure(home, "status", "-o", "json")
        said = orjson.loads(text)
        assert {part["name"]: part["health"] for part in said["parts"]} == dict.fromkeys(processes_of(home), "ok")
        code, text, _ = await perdure(home, "status", "-o", "env")
        variables = dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines())
        assert variables["NATS_URL"] == said["urls"]["nats_url"]
        assert variables["PERDURE_OFFLINE_MODEL_URL"].endswith("/v1")
        assert variables["PERDURE_GATEWAY_URL"] == said["urls"]["gateway_url"]
        assert variables["PERDURE_GATEWAY_URL"] in table
        assert variables["PERDURE_CONSOLE_URL"] in table


async def test_a_second_up_finds_the_first_and_down_stops_it(home: Path):
    async with up(home) as supervisor:
        code, _, err = await perdure(home, "up")
        assert (code, "already runs" in err) == (1, True)
        code, out, _ = await perdure(home, "down")
        assert (code, out.strip()) == (0, "stopped")
        await asyncio.wait_for(supervisor.communicate(), 60)
        assert supervisor.returncode == 0


async def test_up_detached_lets_it_run_until_down(home: Path):
    code, out, err = await perdure(home, "up", "--detach")
    try:
        assert (code, out.splitlines()[-1]) == (0, READY.decode()), err
        assert "no keys are made: everybody on this machine may do everything" in " ".join(err.split())
        assert processes_of(home)
    finally:
        assert (await perdure(home, "down"))[0] == 0
    assert read_state(home) is None


async def test_nothing_outlives_a_supervisor_that_was_killed(home: Path):
    async with up(home) as supervisor:
        below = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()
        await eventually(lambda: not any(process.is_running() for process in below), timeout=30)
    async with up(home):
        assert set(processes_of(home)) >= {"nats", "postgres", "redis"}


async def test_status_and_down_without_a_platform_say_what_to_do(home: Path):
    for command in ("status", "down"):
        code, out, err = await perdure(home, command)
        assert (code, out) == (1, "")
        assert "Start one with `perdure up`" in err


async def test_an_agent_that_is_not_there_is_named(home: Path):
    code, _, err = await perdure(home, "up", PERDURE_AGENTS="nobody-such")
    assert code == 1
    assert "PERDURE_AGENTS names 'nobody-such'" in err
    assert "Traceback" not in err
