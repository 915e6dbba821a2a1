"""The official client of MCP against the gateway."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import mcp
import pytest
from mcp.client.streamable_http import streamable_http_client

from perdure import tool
from perdure.agent.durable import DurableAgent
from perdure.edge import keys
from perdure.edge.keys import pepper
from perdure.engine import Context, StepContext
from perdure.testing.models import ScriptedModel
from tests import a2a_support
from tests.a2a_support import Other
from tests.edge_support import Web, problem, web
from tests.integration.agent_support import configure
from tests.platform import in_process
from tests.support import eventually


class Clerk(a2a_support.Clerk):
    """Doubles numbers, and waits when it is told to.

    What stands here is for readers of the code.
    """

    async def double(self, n: int, step: StepContext) -> int:
        await step.progress(0.5, "half of it")
        return n * 2


@pytest.fixture
async def door(settings, nc):
    async with in_process(settings, nc, Clerk, Other) as platform, web(settings, platform) as made:
        yield made


async def key(door: Web, **said: Any) -> str:
    under = await asyncio.to_thread(pepper, door.gateway.settings)
    return (await keys.create(door.gateway.pool, under, **{"name": "test", "role": "operator", **said})).key


@asynccontextmanager
async def client(door: Web, bearer: str | None = None, **said: Any):
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    async with httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http:
        transport = streamable_http_client(f"{door.gateway.server.url}/mcp", http_client=http)
        async with mcp.Client(transport, **said) as made:
            yield made


async def status_of(door: Web, run_id: str, **more: Any) -> str:
    return (await door.get(f"/runs/{run_id}", **more))["status"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_agents_are_tools_and_a_call_is_a_durable_run(door: Web, mode: str):
    async with client(door, mode=mode) as mcp_client:
        tools = {tool.name: tool for tool in (await mcp_client.list_tools()).tools}
        assert set(tools) == {"clerk", "other"}
        assert tools["clerk"].description == "Doubles numbers, and waits when it is told to."
        told: list[tuple[float, str | None]] = []

        async def progress(done: float, _total: float | None, text: str | None) -> None:
            told.append((done, text))

        said = {"task": {"n": 21}, "run_id": "mine"}
        result = await mcp_client.call_tool("clerk", said, progress_callback=progress)
        assert (result.is_error, result.structured_content) == (False, {"doubled": 42})
        assert result.content[0].text == '{"doubled":42}'
        assert result.meta["perdure.run_id"] == "mine"
        assert [text for _, text in told] == ["50% half of it", "double is done"]
        assert [done for done, _ in told] == [1, 2]
        again = await mcp_client.call_tool("clerk", said)
        assert again.structured_content == {"doubled": 42}
        assert [run["run_id"] for run in (await door.get("/runs"))["runs"]] == ["mine"]
        text = await mcp_client.call_tool("clerk", {"prompt": "hello", "session_id": "talk"})
        assert (text.content[0].text, text.structured_content) == ("heard hello in talk", None)
    assert 'route="/mcp",status="200"' in (await door.http.get("/metrics")).text


@tool
async def add(a: int, b: int, step: StepContext) -> int:
    """The sum of two numbers."""
    await step.progress(0.5, "half of it")
    return a + b


@tool(background=True)
async def report(topic: str, ctx: Context) -> dict[str, str]:
    """A report; it takes a while."""
    return {"report": await ctx.step("write", str.upper, topic)}


@tool(requires_approval=True)
def refund(order: str) -> str:
    """Give the money back."""
    return f"refunded {order}"


@tool
def breaks() -> None:
    """It does not work."""
    raise ValueError("no such luck")


async def test_an_agents_own_tools_are_called_without_its_model(settings, nc, pool):
    model = ScriptedModel()
    bob = DurableAgent("bob__b", model=model, tools=[add, report, refund, breaks], handoffs=["clerk"])
    async with in_process(settings, nc, Clerk, bob) as platform, web(settings, platform) as door:
        async with client(door) as mcp_client:
            tools = {each.name: each for each in (await mcp_client.list_tools()).tools}
            assert set(tools) == {
                "clerk",
                "bob__b",
                *(f"bob__b__{name}" for name in ("add", "report", "refund", "breaks")),
            }
            assert tools["bob__b__add"].description == "The sum of two numbers."
            assert set(tools["bob__b__add"].input_schema["properties"]) == {"a", "b"}
            told: list[str | None] = []

            async def progress(_done: float, _total: float | None, text: str | None) -> None:
                told.append(text)

            result = await mcp_client.call_tool("bob__b__add", {"a": 2, "b": 3}, progress_callback=progress)
            assert (result.is_error, result.content[0].text) == (False, "5")
            assert "50% half of it" in told
            run = await door.get(f"/runs/{result.meta['perdure.run_id']}")
            assert (run["agent"], run["workflow"], run["steps"][0]["name"]) == ("bob__b", "call-tool", "tool:add")
            slow = await mcp_client.call_tool("bob__b__report", {"topic": "x"})
            assert slow.structured_content == {"report": "X"}
            for name, said, why in (
                ("add", {"a": "many"}, "InvalidArguments"),
                ("breaks", {}, "no such luck"),
                ("transfer_to_clerk", {}, "not_found"),
            ):
                wrong = await mcp_client.call_tool(f"bob__b__{name}", said)
                assert wrong.is_error
                assert why in wrong.content[0].text
            asking = asyncio.create_task(mcp_client.call_tool("bob__b__refund", {"order": "7"}))

            async def asked() -> dict[str, Any] | None:
                found = (await door.get("/approvals"))["approvals"]
                return found[0] if found else None

            wanted = await eventually(asked)
            decision = {"arguments_hash": wanted["arguments_hash"], "decision": "approve"}
            await door.post(f"/runs/{wanted['run_id']}/approvals/{wanted['call_id']}", decision)
            assert (await asking).content[0].text == "refunded 7"
            await configure(pool, "bob__b", mcp_tools=["add"])
            await eventually(lambda: "mcp_tools" in bob.config.values)
            denied = await mcp_client.call_tool("bob__b__breaks", {})
            assert "there is no tool 'breaks'" in denied.content[0].text
        narrow = await key(door, agents=["clerk"])
        async with client(door, narrow) as mcp_client:
            assert [each.name for each in (await mcp_client.list_tools()).tools] == ["clerk"]
            assert "forbidden" in (await mcp_client.call_tool("bob__b__add", {"a": 1, "b": 1})).content[0].text
    assert model.requests == []


async def test_a_client_that_lets_go_of_a_call_cancels_its_run(door: Web):
    async with client(door) as mcp_client:
        call = asyncio.create_task(
            mcp_client.call_tool("clerk", {"task": {"n": 1, "wait": True}, "run_id": "w-1"}, progress_callback=_nothing)
        )

        async def waits() -> bool:
            runs = (await door.get("/runs"))["runs"]
            return [run["status"] for run in runs] == ["waiting"]

        await eventually(waits)
        assert door.gateway.door.load.streams == 1
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

        async def cancelled() -> bool:
            return await status_of(door, "w-1") == "cancelled"

        await eventually(cancelled)
        await eventually(lambda: door.gateway.door.load.streams == 0)
        after = await mcp_client.call_tool("other", {"prompt": "still here"})
        assert after.content[0].text == "still here"


async def test_a_gateway_that_stops_cancels_nothing_and_another_one_gives_the_result(door: Web, settings, nc):
    said = {"task": {"n": 2, "wait": True}, "run_id": "w-2"}
    public = "https://agents.example.com"
    async with web(settings, gateway_public_url=public) as second, client(second) as mcp_client:
        call = asyncio.create_task(mcp_client.call_tool("clerk", said))

        async def waits() -> bool:
            return [run["status"] for run in (await door.get("/runs"))["runs"]] == ["waiting"]

        await eventually(waits)
        second.gateway.door.stopping.set()
        result = await call
        assert result.is_error
        assert result.structured_content["code"] == "unavailable"
        assert "w-2" in result.content[0].text
    async with client(door) as mcp_client:
        early = await mcp_client.call_tool("clerk", {**said, "wait": 0.05})
        assert early.structured_content["run_id"] == "w-2"
        assert early.structured_content["status"] in ("waiting", "running")
        await door.post("/runs/w-2/signal/go")
        assert (await mcp_client.call_tool("clerk", said)).structured_content == {"doubled": 4}


async def test_what_goes_wrong_is_an_error_that_the_model_can_read(door: Web):
    wrong = [
        ("clerk", {"task": {"n": 1, "breaks": True}}, "run_failed", "no such luck"),
        ("clerk", {}, "invalid_request", "'prompt'"),
        ("clerk", {"prompt": "a", "task": 1}, "invalid_request", "'prompt'"),
        ("clerk", {"prompt": "a", "odd": 1}, "invalid_request", "'odd'"),
        ("clerk", {"prompt": "a", "run_id": "a b"}, "invalid_request", "'run_id'"),
        ("clerk", {"prompt": "a\0"}, "invalid_request", "U+0000"),
        ("nobody", {"prompt": "a"}, "not_found", "nobody"),
        ("no.body", {"prompt": "a"}, "invalid_request", "agent name"),
    ]
    async with client(door) as mcp_client:
        for tool, said, code, text in wrong:
            result = await mcp_client.call_tool(tool, said)
            assert (result.is_error, result.structured_content["code"]) == (True, code), (tool, said, result)
            assert text in result.content[0].text
        taken = {"prompt": "one", "run_id": "taken"}
        assert not (await mcp_client.call_tool("clerk", taken)).is_error
        other = await mcp_client.call_tool("clerk", {**taken, "prompt": "two"})
        assert other.structured_content["code"] == "conflict"


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPTS = {"Accept": "application/json, text/event-stream"}


async def test_the_door_is_behind_the_guard(settings, nc):
    async with in_process(settings, nc, Clerk, Other) as platform, web(settings, platform, max_payload=100_000) as door:
        open_to_all = await door.http.post("/mcp", json=LIST, headers=ACCEPTS)
        assert open_to_all.status_code == 200
        strange = await door.http.post("/mcp", json=LIST, headers={**ACCEPTS, "Host": "evil.example"})
        problem(strange, "forbidden", 403)
        large = await door.http.post("/mcp", content=b'{"a":"' + b"x" * 200_000, headers=ACCEPTS)
        problem(large, "too_large", 413)
        acme = await key(door, tenant="acme")
        evil = await key(door, tenant="evil")
        viewer = await key(door, role="viewer")
        narrow = await key(door, agents=["other"])
        slow = await key(door, rate_limit=1)
        for headers in ({}, {"Authorization": "Bearer perdure_x_y"}):
            problem(await door.http.post("/mcp", json=LIST, headers={**ACCEPTS, **headers}), "unauthorized", 401)
        rebound = {**ACCEPTS, "Authorization": f"Bearer {acme}", "Host": "evil.example"}
        assert (await door.http.post("/mcp", json=LIST, headers=rebound)).status_code == 421
        with pytest.raises((ExceptionGroup, mcp.MCPError)) as refused:
            async with client(door):
                pass
        assert "error response" in "".join(traceback.format_exception(refused.value))
        async with client(door, acme) as mcp_client:
            ours = await mcp_client.call_tool("clerk", {"prompt": "ours", "run_id": "r-1", "session_id": "talk"})
            assert ours.meta["perdure.run_id"] == "acme__r-1"
            assert ours.content[0].text == "heard ours in acme__talk"
        async with client(door, evil) as mcp_client:
            # the ids of another tenant are names like any other here, of runs of one's own
            theirs = await mcp_client.call_tool("clerk", {"prompt": "ours", "run_id": "acme__r-1"})
            assert theirs.meta["perdure.run_id"] == "evil__acme__r-1"
        async with client(door, viewer) as mcp_client:
            assert len((await mcp_client.list_tools()).tools) == 2
            refused = await mcp_client.call_tool("clerk", {"prompt": "x"})
            assert refused.structured_content["code"] == "forbidden"
        async with client(door, narrow) as mcp_client:
            assert [tool.name for tool in (await mcp_client.list_tools()).tools] == ["other"]
            refused = await mcp_client.call_tool("clerk", {"prompt": "x"})
            assert refused.structured_content["code"] == "forbidden"
        many = [
            await door.http.post("/mcp", json=LIST, headers={**ACCEPTS, "Authorization": f"Bearer {slow}"})
            for _ in range(11)
        ]
        problem(many[-1], "rate_limited", 429)


async def test_a_revoked_key_ends_a_call_and_not_its_run(settings, nc):
    async with in_process(settings, nc, Clerk) as platform, web(settings, platform, gateway_heartbeat=0.05) as door:
        bearer = await key(door)
        async with client(door, bearer) as mcp_client:
            call = asyncio.create_task(mcp_client.call_tool("clerk", {"task": {"n": 1, "wait": True}, "run_id": "k-1"}))
            await eventually(lambda: door.gateway.door.load.streams == 1)
            await keys.revoke(door.gateway.pool, bearer)
            assert (await call).structured_content["code"] == "unauthorized"
        run = await platform.run("k-1")
        assert run["status"] not in ("cancelled", "completed")


async def _nothing(*_said: Any) -> None:
    """A callback, so that the call asks for progress."""
