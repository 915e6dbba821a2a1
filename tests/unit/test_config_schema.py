"""What the ConfigManager refuses for an agent: only what the agent would surely refuse."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, field_validator

from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import LENIENT, TextSchema, schema_of
from perdure.config.snapshot import AgentConfig
from tests.unit.test_config_keys import BAD, GOOD

KNOWN = TextSchema(schema_of(DurableAgentSettings))


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Own(BaseModel):
    colour: Colour = Colour.RED
    mode: Literal["fast", 2] | None = None
    wait: timedelta = timedelta(0)
    sizes: list[int] = []
    either: int | str = 0
    even: Annotated[int, BeforeValidator(lambda text: int(text) * 2)] = 0
    odd: int = 1
    token: SecretStr | None = None
    slow: bool = Field(default=False, json_schema_extra={"live": False})

    @field_validator("odd", mode="before")
    @classmethod
    def words(cls, value: Any) -> Any:
        return {"one": 1}.get(value, value)


@pytest.mark.parametrize(("key", "text", "value"), GOOD)
def test_what_the_agent_takes_is_not_refused(key, text, value) -> None:
    assert KNOWN.refusal(key, text) is None


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key, bad in BAD if bad not in ("inf", "1e400")])
def test_what_the_agent_refuses_is_refused_with_a_reason(key, bad) -> None:
    if not (key in ("agent_instructions", "tools_enabled") or bad == "["):
        assert KNOWN.refusal(key, bad)


@settings(deadline=None)
@given(st.sampled_from(sorted(DurableAgentSettings.model_fields)), st.text(max_size=20) | st.floats().map(str))
def test_no_text_is_refused_that_the_agent_would_take(key, text) -> None:
    taken = not AgentConfig.from_row({key: text}, agent_name="a", settings_model=DurableAgentSettings).held
    assert not (taken and KNOWN.refusal(key, text))


def test_other_models_are_judged_by_what_their_schema_says() -> None:
    schema = schema_of(Own)
    judge = TextSchema(schema)
    for key, good in (
        ("colour", "red"),
        ("mode", "2"),
        ("wait", "PT5S"),
        ("sizes", "[1]"),
        ("either", "x"),
        ("slow", "on"),
    ):
        assert judge.refusal(key, good) is None, key
    for key, bad in (("colour", "green"), ("mode", "3"), ("sizes", "1,2"), ("sizes", "{}"), ("slow", "perhaps")):
        assert judge.refusal(key, bad), key
    assert schema["properties"]["even"][LENIENT]
    assert judge.refusal("odd", "one") is None
    assert judge.secrets == {"token"}
    assert judge.refusal("token", "plain")
    assert schema["properties"]["slow"]["live"] is False


def test_a_key_that_is_nearly_a_known_one_is_asked_about() -> None:
    assert KNOWN.meant("max_iteration") == "max_iterations"
    assert KNOWN.meant("agent_rolle") == "agent_role"
    assert KNOWN.meant("max_iterations") is None
    assert KNOWN.meant("my_own_key") is None
