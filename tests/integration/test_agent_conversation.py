from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from perdure.agent.durable import DurableAgent
from tests.platform import in_process
from tests.support import eventually


def load(name: str) -> DurableAgent:
    path = Path(__file__).parents[2] / "agents" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"agents_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.agent


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)


async def transcript(pool, session: str) -> list[dict]:
    import orjson

    rows = await pool.fetch("SELECT message FROM session_messages WHERE session_id = $1 ORDER BY seq", session)
    return [orjson.loads(row["message"]) for row in rows]


async def output(platform, agent, task, **more):
    reply = await platform.ask(agent, task, **more)
    assert reply["status"] == "completed", reply
    return reply["output"]


async def test_the_assistant_answers_in_its_role_without_any_key(settings, nc):
    async with in_process(settings, nc, load("assistant")) as platform:
        said = await output(platform, "assistant", "hello")
        assert "no language model" in said
        assert "As a helpful assistant" in said
        assert "add_numbers says 6.5" in await output(platform, "assistant", {"task": "add numbers 1 2 3.5"})


async def test_a_role_changed_by_sql_shows_in_the_next_answer_of_the_same_conversation(settings, nc, pool):
    async with in_process(settings, nc, load("assistant")) as platform:
        assert "As a helpful" in await output(platform, "assistant", "hello", session_id="s")
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ('assistant', 'agent_role', 'x')"
        )
        await pool.execute(
            "UPDATE agent_configurations SET config_value = 'a pirate' "
            "WHERE agent_name = 'assistant' AND config_key = 'agent_role'"
        )
        turn = 0

        async def answers_as_a_pirate():
            nonlocal turn
            turn += 1
            return "As a pirate" in await output(platform, "assistant", f"hello {turn}", session_id="s")

        await eventually(answers_as_a_pirate)
