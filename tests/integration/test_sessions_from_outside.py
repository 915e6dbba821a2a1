"""Conversations are read, exported and forgotten over NATS, by the client and from the command line."""

from __future__ import annotations

import sys
from asyncio import create_subprocess_exec, subprocess
from os import environ

import orjson
import pytest

from perdure.agent.durable import DurableAgent
from perdure.client import Client
from perdure.errors import InvalidRequest, NotFound
from perdure.testing.models import ScriptedModel
from tests.integration.agent_support import output
from tests.platform import in_process


@pytest.fixture
async def platform(settings, nc):
    agents = [DurableAgent(name, model=ScriptedModel("one", "two", "three")) for name in ("bob", "eve")]
    async with in_process(settings, nc, *agents) as running:
        yield running


async def test_a_conversation_is_paged_read_and_forgotten_over_nats(platform):
    for text in ("first", "second"):
        await output(platform, "bob", text, session_id="s")
    await output(platform, "bob", "third", session_id="t")

    page = await platform.request("session.list", {"agent": "bob", "limit": 1})
    assert [one["session_id"] for one in page["sessions"]] == ["t"]
    page = await platform.request("session.list", {"agent": "bob", "limit": 1, "cursor": page["next_cursor"]})
    assert [(one["session_id"], one["messages"]) for one in page["sessions"]] == [("s", 4)]

    part = await platform.request("session.history", {"session_id": "s", "limit": 3})
    assert [one["content"] for one in part["history"]] == ["first", "one", "second"]
    rest = await platform.request("session.history", {"session_id": "s", "after": part["next_after"]})
    assert [one["content"] for one in rest["history"]] == ["two"]
    assert rest["next_after"] is None

    gone = await platform.request("session.reset", {"session_id": "s"})
    assert (gone["status"], gone["agent"], gone["forgotten"]) == ("success", "bob", 4)
    assert (await platform.request("session.history", {"session_id": "s"}))["history"] == []


async def test_a_session_that_two_agents_have_is_named_with_its_agent(platform, settings):
    await output(platform, "bob", "to bob", session_id="both")
    await output(platform, "eve", "to eve", session_id="both")
    async with Client(settings) as client:
        with pytest.raises(InvalidRequest, match="bob, eve"):
            await client.history("both")
        assert [one["content"] for one in await client.history("both", agent="eve")] == ["to eve", "one"]
        assert await client.reset_session("both", agent="eve") == 2
        assert len(await client.history("both", agent="bob")) == 2


@pytest.mark.parametrize(
    ("subject", "body", "field"),
    [
        ("session.history", {"session_id": "a b"}, "session_id"),
        ("session.history", {"session_id": "s", "after": -1}, "after"),
        ("session.history", {"session_id": "s", "limit": 0}, "limit"),
        ("session.reset", {}, "session_id"),
        ("session.reset", {"session_id": "s", "agent": "No Name"}, "agent"),
        ("session.list", {}, "agent"),
        ("session.list", {"agent": "bob", "cursor": "yesterday"}, "cursor"),
        ("session.list", {"agent": "bob", "limit": "many"}, "limit"),
    ],
)
async def test_a_bad_request_names_the_field(platform, subject, body, field):
    with pytest.raises(InvalidRequest, match=f"field '{field}'"):
        await platform.request(subject, body)


async def test_a_session_that_is_not_there_is_not_found(platform, settings):
    async with Client(settings) as client:
        for attempt in (client.history("none"), client.history("none", agent="bob"), client.reset_session("none")):
            with pytest.raises(NotFound, match="none"):
                await attempt


async def test_the_command_line_lists_shows_exports_and_resets(platform, settings):
    await output(platform, "bob", "hello [bold]you[/]", session_id="s")

    async def perdure(*arguments: str) -> tuple[int, str]:
        surroundings = {**environ, "NATS_URL": settings.nats_url, "COLUMNS": "200", "NO_COLOR": "1"}
        process = await create_subprocess_exec(
            sys.executable, "-m", "perdure.cli.main", "sessions", *arguments, env=surroundings, stdout=subprocess.PIPE
        )
        return (await process.wait(), (await process.communicate())[0].decode())

    assert "s        2" in (await perdure("list", "bob"))[1]
    assert "hello [bold]you[/]" in (await perdure("show", "s"))[1]
    exported = orjson.loads((await perdure("export", "s"))[1])
    assert [one["role"] for one in exported["messages"]] == ["user", "assistant"]
    assert "**assistant**: one" in (await perdure("export", "s", "--format", "markdown"))[1]
    assert await perdure("reset", "s", "--agent", "bob") == (0, "session s: 2 messages forgotten\n")
    assert (await perdure("show", "nobody"))[0] == 1
