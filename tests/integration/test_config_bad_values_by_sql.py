"""Every bad value of every known key, written by SQL: held, told, and the agent goes on as it was."""

from __future__ import annotations

import asyncpg
import pytest

from perdure.config.keys import DurableAgentSettings
from tests.config_support import PUT, ask, following, manager, messages
from tests.support import eventually
from tests.unit.test_config_keys import BAD, CONTRACT

GOOD = {
    "agent_instructions": "be kind",
    "agent_style_guidelines": "plain",
    "max_iterations": "7",
    "tool_choice": "auto",
    "tools_enabled": "lookup",
    "llm_provider": "openai",
    "llm_model": "small",
    "llm_api_key": "secret://env/A_KEY",
    "llm_base_url": "http://127.0.0.1:9/v1",
    "llm_temperature": "0.5",
    "llm_max_tokens": "100",
    "rate_limit": "60",
    "tool_timeout_seconds": "5",
    "retry_max_attempts": "3",
    "requires_approval": "refund",
    "history_max_messages": "50",
    "log_level": "info",
}
# Any text is a role; what may be in these is nobody's to refuse.
ANY_TEXT = {"agent_role", "agent_goal", "agent_system_prompt"}


def test_every_key_that_can_be_wrong_is_here() -> None:
    assert set(GOOD) | ANY_TEXT == CONTRACT == set(DurableAgentSettings.model_fields)
    assert {key for key, _ in BAD} == set(GOOD)


@pytest.mark.parametrize("key", sorted(GOOD))
async def test_a_bad_value_is_held_and_told_and_everything_else_applies(settings, nc, redis, pool, key) -> None:
    applied = await messages(nc, "config.applied.assistant")
    async with manager(settings), following(nc, redis, settings) as agent:
        await pool.execute(PUT, "assistant", key, GOOD[key])
        await eventually(lambda: agent.snapshot.values.get(key) == GOOD[key])
        good = agent.snapshot.get_setting(key)
        for number, bad in enumerate(value for name, value in BAD if name == key):
            if key == "llm_api_key":  # never lets it in at all
                with pytest.raises(asyncpg.CheckViolationError, match="reference"):
                    await pool.execute(PUT, "assistant", key, bad)
                await pool.execute(PUT, "assistant", "agent_role", f"role {number}")
            else:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(PUT, "assistant", key, bad)
                    await connection.execute(PUT, "assistant", "agent_role", f"role {number}")
            await eventually(
                lambda number=number: agent.snapshot.get_setting("agent_role") == f"role {number}",
                message=f"the rest applies beside {key}={bad!r}",
            )
            assert agent.snapshot.get_setting(key) == good, bad
            found = await ask(nc, "config.get.assistant")
            assert found["configurations"][key] == GOOD[key], bad
            if key == "llm_api_key":
                continue
            assert list(agent.snapshot.held) == [key], bad
            assert list(found.get("held") or agent.snapshot.held) == [key], bad
            revision = agent.snapshot.revision
            told = await eventually(
                lambda revision=revision: next((each for each in applied if each["revision"] == revision), None)
            )
            assert (told["status"], list(told["errors"])) == ("rejected", [key]), bad
        await pool.execute(PUT, "assistant", key, GOOD[key])
        await pool.execute(PUT, "assistant", "agent_goal", "the end")
        await eventually(lambda: agent.snapshot.get_setting("agent_goal") == "the end")
        assert not agent.snapshot.held
