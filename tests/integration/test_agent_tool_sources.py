from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from perdure.agent.durable import DurableAgent
from perdure.agent.mcp import McpServer
from perdure.agent.openapi import OpenApi
from perdure.errors import SetupError
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import output
from tests.platform import in_process
from tests.support import eventually

PROGRAM = str(Path(__file__).with_name("mcp_program.py"))
LIAR = str(Path(__file__).with_name("mcp_liar.py"))


def seen(request):
    return " | ".join(one["content"] for one in request.messages if one["role"] == "tool")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def names(request):
    return sorted(tool["function"]["name"] for tool in request.tools)


async def test_the_tools_of_an_mcp_program_are_the_agents_as_far_as_the_list_allows(settings, nc):
    source = McpServer("files", [sys.executable, PROGRAM], allow=["read_*", "broken"], timeout=20)
    calls = [
        Call("files_read_file", {"path": "a"}),
        Call("files_broken"),
        Call("files_read_file", {}),
        Call("files_delete_file", {"path": "a"}),
    ]
    model = ScriptedModel(calls, seen)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[source])) as platform:
        said = (await output(platform, "bob", "go")).split(" | ")
    assert names(model.requests[0]) == ["files_broken", "files_read_file"]
    assert said[0] == "content of a"
    assert "Error executing tool broken" in said[1]
    assert "path: Field required" in said[2]
    assert "there is no tool 'files_delete_file'" in said[3]


async def test_an_mcp_program_that_dies_is_started_again(settings, nc):
    source = McpServer("files", [sys.executable, PROGRAM], timeout=20)
    model = ScriptedModel(Call("files_die"), seen, Call("files_read_file", {"path": "b"}), seen)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[source])) as platform:
        assert "error" in await output(platform, "bob", "die", session_id="s")
        await eventually(lambda: source._client is not None)
        assert (await output(platform, "bob", "read", session_id="s")).endswith("content of b")


async def test_an_mcp_server_over_http_may_come_later_than_the_agent(settings, nc):
    port = free_port()
    source = McpServer("files", f"http://127.0.0.1:{port}/mcp", start_timeout=0.2, timeout=20)
    model = ScriptedModel(seen, Call("files_read_file", {"path": "c"}), seen)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[source])) as platform:
        assert await output(platform, "bob", "hello", session_id="s") == ""
        process = await asyncio.create_subprocess_exec(
            sys.executable, PROGRAM, str(port), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await eventually(lambda: "files_read_file" in source.tools(), timeout=30)
            assert await output(platform, "bob", "read", session_id="s") == "content of c"
        finally:
            process.kill()
            await process.wait()


async def test_an_mcp_server_that_lies_costs_only_its_own_calls(settings, nc):
    source = McpServer("liar", [sys.executable, LIAR], timeout=1.0, start_timeout=20)
    odd = McpServer("odd", [sys.executable, LIAR, "odd"], start_timeout=2)
    calls = [Call("liar_no_result"), Call("liar_broken_answer"), Call("liar_huge"), Call("liar_silent")]
    model = ScriptedModel(calls, seen)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[source, odd])) as platform:
        said = (await output(platform, "bob", "go", timeout=60)).split(" | ")
    listed = names(model.requests[0])
    assert len(listed) == 128, "its pages have no end"
    assert "liar_no_result" in listed, "the first of two that end up with one name"
    assert not any(name.startswith("odd") for name in listed), "a list that is none"
    [long] = [one["function"] for one in model.requests[0].tools if one["function"]["name"] == "liar_long"]
    assert len(long["description"]) == 4_000
    kinds = [orjson.loads(one)["error"]["type"] for one in (said[0], said[1], said[3])]
    assert set(kinds[:2]) == {"PermanentError"}
    assert kinds[2] in {"PermanentError", "TimeoutError"}
    assert said[2].startswith("zzz")
    assert "[cut: the result has 1000000 characters" in said[2][-100:]


def test_a_target_that_is_neither_url_nor_command_is_refused():
    with pytest.raises(ValueError, match="MCP server 'x'"):
        McpServer("x", "files")


DOCUMENT = {
    "openapi": "3.1.0",
    "paths": {
        "/orders/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {
                "operationId": "get_order",
                "summary": "One order.",
                "parameters": [{"name": "full", "in": "query", "schema": {"type": "boolean"}}],
            },
            "delete": {"operationId": "delete_order"},
        },
        "/orders": {
            "post": {
                "operationId": "create_order",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
            },
            "get": {"operationId": "list_orders", "parameters": [{"$ref": "#/components/parameters/Missing"}]},
        },
        "/busy": {"get": {"operationId": "get_busy"}},
    },
    "components": {"schemas": {"Order": {"type": "object", "properties": {"item": {"type": "string"}}}}},
}


@pytest.fixture
async def shop():
    asked = []

    async def handle(request):
        asked.append((request.method, request.path_qs, await request.text(), dict(request.headers)))
        if request.path == "/busy":
            busy = len([one for one in asked if one[1] == "/busy"])
            return web.Response(status=503, text="busy") if busy < 2 else web.Response(text="free")
        if request.method == "DELETE":
            return web.Response(status=403, text="not yours")
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


async def test_the_operations_of_an_openapi_document_are_tools(settings, nc, shop, monkeypatch):
    url, asked = shop
    monkeypatch.setenv("SHOP_TOKEN", "the-token")
    source = OpenApi("shop", DOCUMENT, base_url=url, headers={"Authorization": "Bearer secret://env/SHOP_TOKEN"})
    calls = [
        Call("shop_get_order", {"id": "a/../b?c", "full": True}),
        Call("shop_create_order", {"body": {"item": "tea"}}),
        Call("shop_delete_order", {"id": "1"}),
        Call("shop_get_busy"),
        Call("shop_get_order", {}),
    ]
    model = ScriptedModel(calls, seen)
    agent = DurableAgent("bob", model=model, tools=[source], parallel_tools=False)
    async with in_process(settings, nc, agent) as platform:
        said = (await output(platform, "bob", "go")).split(" | ")
    assert names(model.requests[0]) == ["shop_create_order", "shop_delete_order", "shop_get_busy", "shop_get_order"]
    assert said[0] == said[1] == '{"ok": true}'
    assert "answered 403: not yours" in said[2]
    assert said[3] == "free"
    assert "id: Field required" in said[4]
    assert asked[0][:2] == ("GET", "/orders/a%2F..%2Fb%3Fc?full=true")
    assert asked[1][:3] == ("POST", "/orders", '{"item":"tea"}')
    assert "Idempotency-Key" in asked[1][3]
    assert all(one[3]["Authorization"] == "Bearer the-token" for one in asked)


async def test_an_openapi_document_that_cannot_be_used_says_so_at_the_start(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_bytes(orjson.dumps({"hello": 1}))
    for source in (
        OpenApi("x", tmp_path / "not there.json"),
        OpenApi("x", tmp_path / "broken.json"),
        OpenApi("x", tmp_path / "other.json"),
        OpenApi("x", DOCUMENT),
    ):
        with pytest.raises(SetupError, match="OpenAPI 'x'"):
            await source.start()
        await source.stop()


async def test_another_agent_as_a_tool_is_a_durable_child_and_only_that_agent_is_called(settings, nc, pool):
    expert = DurableAgent("sea-expert", role="an expert of the sea", model=ScriptedModel("it is blue"))
    model = ScriptedModel(Call("sea_expert", {"task": "what colour?"}), lambda request: f"they say {seen(request)}")
    agent = DurableAgent("bob", model=model, tools=[expert])
    async with in_process(settings, nc, agent) as platform:
        reply = await platform.ask("bob", "the sea?")
        assert reply["output"] == "they say it is blue"
        children = await platform.request("run.list", {"parent_run_id": reply["run_id"]})
    assert [(one["agent"], one["status"]) for one in children["runs"]] == [("sea-expert", "completed")]
    assert "an expert of the sea" in model.requests[0].tools[0]["function"]["description"]


async def test_a_child_agent_that_fails_is_told_to_the_model(settings, nc):
    expert = DurableAgent("expert", model=ScriptedModel())
    model = ScriptedModel(Call("expert", {"task": "x"}), seen)
    async with in_process(settings, nc, DurableAgent("bob", model=model, tools=[expert.as_tool()])) as platform:
        assert "agent expert ended failed" in await output(platform, "bob", "go")


async def test_a_hand_off_lets_the_other_agent_answer_knowing_what_was_said(settings, nc, pool):
    billing = DurableAgent("billing", model=ScriptedModel("your bill is 7"))
    desk = DurableAgent(
        "desk", model=ScriptedModel("hello Anna", Call("transfer_to_billing", {"reason": "money"})), handoffs=[billing]
    )
    async with in_process(settings, nc, desk) as platform:
        await output(platform, "desk", "I am Anna", session_id="s")
        assert await output(platform, "desk", "what do I owe?", session_id="s") == "your bill is 7"
    system = billing.model.given.requests[0].messages[0]["content"]
    assert "user: I am Anna" in system
    assert "assistant: hello Anna" in system
    rows = await pool.fetch("SELECT message FROM session_messages WHERE agent_name = 'desk' ORDER BY seq")
    last = orjson.loads(rows[-1]["message"])
    assert (last["content"], last["agent"]) == ("your bill is 7", "billing")


async def test_a_hand_off_to_an_agent_that_fails_goes_back_to_the_model(settings, nc):
    billing = DurableAgent("billing", model=ScriptedModel())
    desk = DurableAgent("desk", model=ScriptedModel(Call("transfer_to_billing"), "sorry"), handoffs=[billing])
    async with in_process(settings, nc, desk) as platform:
        assert await output(platform, "desk", "what do I owe?") == "sorry"
