"""The seed's own story: lines are activated while the conversation goes on, and everything is killed in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import psutil
import pytest

from perdure import Client
from perdure.embedded.state import read_state
from perdure.settings import Settings
from tests.command import up
from tests.support import eventually, temporary_folder

AGENTS = {"PERDURE_AGENTS": "activation"}
CUSTOMERS = ("Anna", "Bob", "Eve")


@pytest.fixture
def home() -> Iterator[Path]:
    with temporary_folder("lines") as folder:
        yield folder


@asynccontextmanager
async def client_of(home: Path) -> AsyncIterator[Client]:
    async with Client(Settings(nats_url=read_state(home).urls.nats_url)) as client:
        yield client


async def test_three_lines_are_active_after_every_process_and_every_server_was_killed(home: Path):
    async with up(home, **AGENTS) as supervisor:
        wish = ", ".join(f"activate line for {customer}" for customer in CUSTOMERS)
        async with client_of(home) as client:
            assert (await client.ask("activation", wish, session_id="desk")).count("scheduled") == 3
            before = await client.ask("activation", "is it done?", session_id="desk")
        assert before.count("Background work: activate_line") == 3
        assert "is active" not in before
        below = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()
        for process in below:
            if process.is_running():
                process.kill()
        await eventually(lambda: not any(process.is_running() for process in below), timeout=30)
    async with up(home, **AGENTS), client_of(home) as client:

        async def done() -> bool:
            return "Background work" not in await client.ask("activation", "and now?", session_id="desk")

        await eventually(done, timeout=60)
        messages = await client.history("desk")
    told = [orjson.loads(one["content"]) for one in messages if one["role"] == "tool"]
    scheduled, ended = told[:3], told[3:]
    assert sorted(one["call_id"] for one in ended) == sorted(one["call_id"] for one in scheduled), "each one once"
    asked = {
        call["id"]: orjson.loads(call["function"]["arguments"])["customer"]
        for one in messages
        for call in one.get("tool_calls") or []
    }
    for one in ended:
        assert one["status"] == "completed"
        assert f"the line of {asked[one['call_id']]} is active" in one["result"], "each result has its own call"
