"""The official client of the Model Context Protocol against the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client

from perdure.agent.base import BaseAgent
from perdure.edge import keys
from perdure.engine import Context, StepContext, workflow
from tests.edge_support import Web, web
from tests.platform import in_process


class Adder(BaseAgent):
    name = "adder"

    @workflow
    async def run(self, ctx: Context, task: str) -> dict:
        first, second = task.split("+")
        return {"sum": await ctx.step("add", self.add, int(first), int(second)), "session": ctx.session_id}

    async def add(self, first: int, second: int, step: StepContext) -> int:
        await step.progress(0.5, "adding")
        return first + second


class Secret(Adder):
    name = "secret"


@asynccontextmanager
async def client(door: Web, key: str | None = None) -> AsyncIterator[mcp.Client]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        transport = streamable_http_client(f"{door.gateway.server.url}/mcp", http_client=http)
        async with mcp.Client(transport) as made:
            yield made


async def test_agents_are_tools_whose_calls_are_runs_with_progress(settings, nc):
    async with in_process(settings, nc, Adder) as platform, web(settings, platform) as door:
        told: list[str | None] = []

        async def progress(_done: float, _total: float | None, message: str | None) -> None:
            told.append(message)

        async with client(door) as made:
            tools = (await made.list_tools()).tools
            assert [tool.name for tool in tools] == ["adder"]
            assert tools[0].input_schema["required"] == ["task"]
            said: Any = await made.call_tool("adder", {"task": "2+3", "session_id": "talk"}, progress_callback=progress)
            assert (said.is_error, said.structured_content) == (False, {"sum": 5, "session": "talk"})
            assert "tool.progress adding" in told
            assert "step.completed add" in told
            wrong: Any = await made.call_tool("adder", {"task": "two"})
            assert wrong.is_error
            assert "run_failed" in wrong.content[0].text
            assert (await made.call_tool("nobody", {"task": "1+1"})).is_error
            assert (await made.call_tool("adder", {"task": ""})).is_error


async def test_a_key_reaches_by_mcp_what_it_reaches_elsewhere(settings, nc):
    async with in_process(settings, nc, Adder, Secret) as platform, web(settings, platform) as door:
        under = await asyncio.to_thread(keys.pepper, door.gateway.settings)

        async def key(**said: Any) -> str:
            return (await keys.create(door.gateway.pool, under, name="test", **said)).key

        async with client(door, await key(tenant="acme", agents=["adder"])) as made:
            assert [tool.name for tool in (await made.list_tools()).tools] == ["adder"]
            said: Any = await made.call_tool("adder", {"task": "2+3", "session_id": "talk"})
            assert said.structured_content["session"] == "acme__talk"
            refused: Any = await made.call_tool("secret", {"task": "2+3"})
            assert refused.is_error
            assert "forbidden" in refused.content[0].text
        async with client(door, await key(role="viewer")) as made:
            refused = await made.call_tool("adder", {"task": "2+3"})
            assert "operator" in refused.content[0].text
        assert (await door.http.post("/mcp", json={})).status_code == 401
