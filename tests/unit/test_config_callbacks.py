"""`@on_config` methods are told of their own keys, and fail alone."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from perdure.config.callbacks import call_back, on_config
from perdure.config.snapshot import AgentConfig


class Own(BaseModel):
    limit: int = 1
    token: str | None = None


def config(**values: str) -> AgentConfig:
    return AgentConfig.from_row(values, agent_name="a", settings_model=Own)


class Base:
    def __init__(self) -> None:
        self.heard: list[tuple] = []

    @on_config("limit")
    def bad(self, key, old, new) -> None:
        raise RuntimeError("no")

    @on_config("limit", "other")
    async def told(self, key, old, new) -> None:
        self.heard.append((key, old, new))


class Agent(Base):
    @on_config("token")
    def secret(self, key, old, new) -> None:
        self.heard.append((key, old, new))


async def test_each_method_hears_its_changed_keys_with_their_types_and_a_failing_one_fails_alone() -> None:
    agent = Agent()
    before = config(limit="2", other="x", token="secret://env/A")
    errors = await call_back(agent, before, config(limit="3", token="secret://env/B"))
    assert agent.heard == [("limit", 2, 3), ("other", "x", None), ("token", "secret://env/A", "secret://env/B")]
    assert errors == {"bad(limit)": "RuntimeError: no"}
    agent.heard.clear()
    assert await call_back(agent, before, before.at(9)) == {}
    assert agent.heard == []


def test_without_keys_it_says_how_to_use_it() -> None:
    for wrong in ((), (lambda: None,)):
        with pytest.raises(TypeError, match="agent_role"):
            on_config(*wrong)
