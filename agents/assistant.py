"""The assistant: a persona, a model and a few harmless tools.

Run it with `perdure agent agents/assistant.py`. Change who it is while it runs, with SQL:

    INSERT INTO agent_configurations (agent_name, config_key, config_value)
    VALUES ('assistant', 'agent_role', 'a pirate')
    ON CONFLICT (agent_name, config_key) DO UPDATE SET config_value = excluded.config_value;

Kill its process in the middle of an answer: another replica, or the next start, goes on where it was.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from perdure import DurableAgent, run_agent, tool


@tool
def current_time(timezone: str = "UTC") -> str:
    """The date and time now.

    Args:
        timezone: an IANA name such as Europe/Rome

    """
    try:
        zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"there is no time zone {timezone!r}; use an IANA name such as Europe/Rome") from error
    return datetime.now(zone).isoformat(timespec="seconds")


@tool
def word_count(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


@tool
def add_numbers(numbers: list[float]) -> float:
    """The sum of some numbers."""
    return sum(numbers)


agent = DurableAgent(
    name="Assistant",
    role="a helpful assistant",
    goal="Answer what is asked, briefly and truthfully.",
    instructions=["Use a tool when it can do the work.", "Say so when you do not know."],
    tools=[current_time, word_count, add_numbers],
)

if __name__ == "__main__":
    run_agent(agent)
