"""The agent that the turn benchmarks measure: the offline model at zero delay, no tools."""

from __future__ import annotations

from perdure import DurableAgent, run_agent

if __name__ == "__main__":
    run_agent(DurableAgent("talker", role="an echo", stream=False, history_max_messages=20))
