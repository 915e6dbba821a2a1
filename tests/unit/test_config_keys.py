"""Every key that a DurableAgent understands: what it accepts, and every kind of bad value."""

from __future__ import annotations

import pytest

from perdure.config.keys import DurableAgentSettings
from perdure.config.secrets import resolve_secret
from perdure.config.snapshot import AgentConfig
from perdure.errors import SetupError

CONTRACT = {
    *("agent_role", "agent_goal", "agent_instructions", "agent_system_prompt", "agent_style_guidelines"),
    *("max_iterations", "tool_choice", "tools_enabled", "llm_provider", "llm_model", "llm_api_key", "llm_base_url"),
    *("llm_temperature", "llm_max_tokens", "rate_limit", "tool_timeout_seconds", "retry_max_attempts"),
    *("requires_approval", "history_max_messages", "log_level"),
}

GOOD = [
    ("agent_role", "anything at all", "anything at all"),
    ("agent_role", "7", "7"),
    ("agent_role", "", ""),
    ("agent_instructions", "one text\nof two lines", ["one text\nof two lines"]),
    ("agent_instructions", '["a", "b"]', ["a", "b"]),
    ("agent_instructions", "", []),
    ("agent_style_guidelines", '["short"]', ["short"]),
    ("max_iterations", "12", 12),
    ("tool_choice", "auto", "auto"),
    ("tools_enabled", "a, b", ["a", "b"]),
    ("tools_enabled", '["a"]', ["a"]),
    ("tools_enabled", "", []),
    ("requires_approval", "refund", ["refund"]),
    ("llm_api_key", "secret://env/OPENAI_API_KEY", "secret://env/OPENAI_API_KEY"),
    ("llm_base_url", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    ("llm_temperature", "0.7", 0.7),
    ("llm_max_tokens", "4096", 4096),
    ("rate_limit", "60", 60.0),
    ("tool_timeout_seconds", "1.5", 1.5),
    ("retry_max_attempts", "3", 3),
    ("history_max_messages", "50", 50),
    ("log_level", "debug", "debug"),
    ("max_iterations", "null", None),
]

NUMBERS = ("", " ", "many", "1,5", "0x10", "nan", "inf", "-1", "1e400", "[1]", '{"a":1}', "true")
BAD = [
    *(
        (key, bad)
        for key in ("max_iterations", "llm_max_tokens", "retry_max_attempts")
        for bad in (*NUMBERS, "0", "1.5")
    ),
    *((key, bad) for key in ("rate_limit", "tool_timeout_seconds") for bad in (*NUMBERS, "0")),
    *(("llm_temperature", bad) for bad in (*NUMBERS, "2.1")),
    *(("history_max_messages", bad) for bad in (*NUMBERS, "0", "100001")),
    ("max_iterations", "1001"),
    ("retry_max_attempts", "101"),
    *((key, bad) for key in ("agent_instructions", "agent_style_guidelines") for bad in ("[", '["a", 1]', "[[]]")),
    *((key, bad) for key in ("tools_enabled", "requires_approval") for bad in ("[", "[1]", '["a"')),
    *((key, "") for key in ("tool_choice", "llm_provider", "llm_model", "llm_base_url", "log_level")),
    *(("llm_base_url", bad) for bad in ("example.org", "ftp://x", "http://", "http://a b")),
    *(("log_level", bad) for bad in ("loud", "INFO", "10")),
    *(("llm_api_key", bad) for bad in ("sk-abc", "secret://", "secret://env/", "secret://vault/x")),
    ("tool_choice", "x" * 129),
]


def config(**values: str) -> AgentConfig:
    return AgentConfig.from_row(values, agent_name="a", settings_model=DurableAgentSettings)


def test_the_model_has_exactly_the_keys_of_the_contract_each_with_a_description() -> None:
    assert set(DurableAgentSettings.model_fields) == CONTRACT
    assert all(field.description for field in DurableAgentSettings.model_fields.values())


@pytest.mark.parametrize(("key", "text", "value"), GOOD)
def test_a_good_value_has_its_type(key, text, value) -> None:
    made = config(**{key: text})
    assert made.held == {}
    assert made.get_setting(key) == value


@pytest.mark.parametrize(("key", "bad"), BAD)
def test_a_bad_value_is_held_and_the_reason_does_not_quote_it(key, bad) -> None:
    made = config(**{key: bad}, agent_role="applies")
    assert list(made.held) == [key]
    assert made.get_setting(key) is None
    assert made.get_setting("agent_role") == "applies"
    if bad.startswith("sk-"):
        assert bad not in made.held[key]


async def test_a_secret_is_found_in_the_environment_or_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "hush")
    (tmp_path / "key").write_text("whisper\n")
    assert await resolve_secret("secret://env/A_KEY") == "hush"
    assert await resolve_secret(f"secret://file{tmp_path}/key") == "whisper"


async def test_a_reference_to_nothing_is_said_with_the_reference(tmp_path) -> None:
    (tmp_path / "empty").write_text("\n")
    for reference in (
        "secret://env/NOT_SET_ANYWHERE",
        f"secret://file{tmp_path}/none",
        f"secret://file{tmp_path}/empty",
    ):
        with pytest.raises(SetupError, match=reference):
            await resolve_secret(reference)
    for nonsense in ("", "plain"):
        with pytest.raises(ValueError, match="reference"):
            await resolve_secret(nonsense)
