from __future__ import annotations

import pytest

from perdure.agent import memory
from perdure.agent.durable import DurableAgent
from perdure.errors import RunFailed
from perdure.testing import faults
from perdure.testing.faults import FaultServer
from perdure.testing.models import Call, ScriptedModel
from tests.integration.agent_support import configure, load, output
from tests.platform import in_process


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)


def bob(*lines, **more):
    return DurableAgent("bob", model=ScriptedModel(*lines), **more)


def system(agent):
    return agent.model.given.requests[-1].messages[0]["content"]


async def test_what_was_kept_in_one_conversation_is_recalled_in_another(settings, nc, pool):
    await configure(pool, "bob", memory_enabled="true")
    agent = bob(Call("remember", {"text": "Anna drinks green tea"}), "kept")
    async with in_process(settings, nc, agent) as platform:
        assert await output(platform, "bob", "my name is Anna", session_id="one") == "kept"
        agent.model.given.lines = ("hello",)
        await output(platform, "bob", "which tea does Anna drink?", session_id="two")
        assert "Memory: Anna drinks green tea" in system(agent)
        await output(platform, "bob", "zebra", session_id="three")
        assert "Memory:" not in system(agent), "what is far off is not recalled"
        assert await agent.memory.forget() == 1
        await output(platform, "bob", "which tea does Anna drink?", session_id="four")
        assert "Memory:" not in system(agent)


async def test_memory_is_off_unless_configured(settings, nc, pool):
    agent = bob("hello")
    async with in_process(settings, nc, agent) as platform:
        await output(platform, "bob", "hello")
        assert await agent.memory.forget() == 0
    assert agent.model.given.requests[0].tools == []
    assert await pool.fetchval("SELECT to_regclass('memories') IS NULL")


async def test_one_agent_does_not_recall_what_another_has_kept(settings, nc, pool):
    for name in ("bob", "eve"):
        await configure(pool, name, memory_enabled="true")
    eve = DurableAgent("eve", model=ScriptedModel("hello"))
    async with in_process(settings, nc, bob(Call("remember", {"text": "Anna drinks tea"}), "kept"), eve) as platform:
        await output(platform, "bob", "x")
        await output(platform, "eve", "what does Anna drink, tea?")
    assert "Memory:" not in system(eve)


async def test_the_same_call_keeps_its_text_once(settings, nc, pool):
    await configure(pool, "bob", memory_enabled="true")
    agent = bob("hello")
    async with in_process(settings, nc, agent):
        for _ in range(3):
            await agent.memory.keep("the key", "s", "once")
    assert await pool.fetchval("SELECT count(*) FROM memories") == 1


async def test_a_postgres_without_pgvector_is_a_clear_error(settings, nc, pool, monkeypatch):
    blocks = {**memory._SQL, "available": "SELECT FALSE"}
    monkeypatch.setattr(memory, "_SQL", blocks)
    await configure(pool, "bob", memory_enabled="true")
    async with in_process(settings, nc, bob("hello")) as platform:
        with pytest.raises(RunFailed, match=r"needs the pgvector extension.*memory_enabled"):
            await platform.ask("bob", "hello")


async def test_a_model_without_embeddings_costs_only_the_memories(settings, nc, pool, monkeypatch):
    async with FaultServer() as server:  # it has no /v1/embeddings: 404
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        server.always(faults.answer("hello"))
        await configure(pool, "bob", memory_enabled="true")
        async with in_process(settings, nc, DurableAgent("bob")) as platform:
            assert await output(platform, "bob", "hello") == "hello"


async def test_the_offline_model_shows_what_is_remembered(settings, nc, pool):
    await configure(pool, "assistant", memory_enabled="true")
    async with in_process(settings, nc, load("assistant")) as platform:
        assert "remembered" in await output(platform, "assistant", 'remember "Anna drinks green tea"')
        assert "Anna drinks green tea" in await output(platform, "assistant", "which tea does Anna drink")


def to(user, text):
    return {"task": text, "user": user}


@pytest.mark.parametrize(
    ("scope", "of_anna", "of_eve", "of_nobody"),
    [
        (None, True, False, False),
        ("user", True, False, False),
        ("session", False, False, False),
        ("agent", True, True, True),
    ],
)
async def test_one_user_does_not_recall_what_another_has_kept(settings, nc, pool, scope, of_anna, of_eve, of_nobody):
    await configure(pool, "bob", memory_enabled="true", **({} if scope is None else {"memory_scope": scope}))
    agent = bob(Call("remember", {"text": "the secret word is teapot"}), "kept")
    async with in_process(settings, nc, agent) as platform:
        await output(platform, "bob", to("anna", "keep it"), session_id="one")
        agent.model.given.lines = ("x", "x", "x", "x")
        await output(platform, "bob", to("anna", "the secret word?"), session_id="one")
        assert "Memory: the secret word is teapot" in system(agent), "it is the same user in the same conversation"
        for task, expected in (
            (to("anna", "the secret word?"), of_anna),
            (to("eve", "the secret word?"), of_eve),
            ("the secret word?", of_nobody),
        ):
            agent.model.given.lines = ("x",)
            await output(platform, "bob", task)
            assert ("Memory: the secret word" in system(agent)) is expected, task


async def test_the_user_goes_along_to_the_agents_that_are_called(settings, nc, pool):
    await configure(pool, "eve", memory_enabled="true")
    eve = DurableAgent("eve", model=ScriptedModel("hello"))
    seen = []
    for user in ("anna", "otto"):
        lines = (Call("eve", {"task": "what is the secret word?"}), Call("transfer_to_eve"))
        agent = DurableAgent("bob", model=ScriptedModel(*lines), tools=[eve], handoffs=["eve"])
        async with in_process(settings, nc, agent) as platform:
            if not seen:
                await eve.memory.keep("1", "r", "the secret word is teapot", "user:anna")
            eve.model.given.requests.clear()
            assert await output(platform, "bob", to(user, "what is the secret word?")) == "hello"
            seen.append(["teapot" in one.messages[0]["content"] for one in eve.model.given.requests])
    assert seen == [[True, True], [False, False]], "called as a tool, and by a hand-off"


@pytest.mark.parametrize("user", [7, "a\nb"])
async def test_a_user_that_is_none_is_refused_by_name(settings, nc, user):
    async with in_process(settings, nc, bob("hello")) as platform:
        with pytest.raises(RunFailed, match="field 'user'"):
            await platform.ask("bob", to(user, "hello"))


async def test_memories_from_before_there_were_scopes_belong_to_the_whole_agent(settings, nc, pool):
    await configure(pool, "bob", memory_enabled="true")
    agent = bob("hello", "hello")
    async with in_process(settings, nc, agent) as platform:
        await agent.memory.keep("1", "r", "the secret word is teapot")
        await pool.execute("DROP INDEX memories_scope; ALTER TABLE memories DROP COLUMN scope")
        agent.memory._ready = False
        await output(platform, "bob", "the secret word?")
        assert "Memory: the secret word" in system(agent)
