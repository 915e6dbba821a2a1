"""What the tests of DurableAgents share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import orjson

from perdure.agent.durable import DurableAgent

AGENTS = Path(__file__).parents[2] / "agents"


def program(name: str) -> Any:
    """The module `agents/<name>.py`."""
    spec = importlib.util.spec_from_file_location(f"agents_{name}", AGENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


def load(name: str) -> DurableAgent:
    """The ready agent of `agents/<name>.py`."""
    return program(name).agent


async def output(platform: Any, agent: str, task: Any, **more: Any) -> Any:
    """The output of one run."""
    reply = await platform.ask(agent, task, **more)
    assert reply["status"] == "completed", reply
    return reply["output"]


async def configure(pool: Any, agent: str, **values: Any) -> None:
    """Write rows as a person with psql would."""
    for key, value in values.items():
        await pool.execute(
            "INSERT INTO agent_configurations (agent_name, config_key, config_value) VALUES ($1, $2, $3) "
            "ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value",
            agent,
            key,
            value if isinstance(value, str) else orjson.dumps(value).decode(),
        )


async def transcript(pool: Any, session: str) -> list[dict]:
    """The messages of a conversation, in order; their seqs have no gap."""
    rows = await pool.fetch("SELECT seq, message FROM session_messages WHERE session_id = $1 ORDER BY seq", session)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    return [orjson.loads(row["message"]) for row in rows]


def spoken(messages: list[dict]) -> list[tuple[str, str]]:
    """(role, content) of what was said, without tool calls."""
    return [(one["role"], one["content"]) for one in messages if one["content"] and one["role"] != "tool"]


def results(messages: list[dict]) -> list[str]:
    """The contents of the tool results."""
    return [one["content"] for one in messages if one["role"] == "tool"]
