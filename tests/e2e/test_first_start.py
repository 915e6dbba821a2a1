"""What `make run` gives: the whole platform with its ready agents, ended by Ctrl-C, found again by the next start."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest

from perdure.bus import wire
from perdure.embedded.state import read_state
from perdure.settings import Settings
from tests.command import processes_of, up
from tests.support import temporary_folder

DEFAULT_AGENTS = Settings.model_fields["agents"].default


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("first") as folder:
        # A folder that only its owner may enter, as a home folder often is.
        folder.chmod(0o700)
        yield folder / "data"


async def request(home: Path, subject: str, payload: dict[str, Any]) -> dict[str, Any]:
    nc = await nats.connect(read_state(home).urls.nats_url)
    try:
        return await wire.request(nc, subject, payload, timeout=40)
    finally:
        await nc.close()


async def test_a_run_of_the_first_start_is_there_in_the_second(home: Path):
    async with up(home, PERDURE_AGENTS=DEFAULT_AGENTS) as supervisor:
        assert {"agent-assistant", "agent-activation", "scheduler", "config_manager"} <= processes_of(home).keys()
        said = await request(home, "run.ask.assistant", {"task": "Who are you?", "timeout": 30})
        assert said["status"] == "completed"
        below = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.send_signal(signal.SIGINT)
        await asyncio.wait_for(supervisor.wait(), 60)
        assert supervisor.returncode == 0
        assert [process for process in below if process.is_running()] == []
    async with up(home):
        found = await request(home, "run.get", {"run_id": said["run_id"]})
        assert (found["status"], found["output"]) == ("completed", said["output"])
