"""What `perdure agents list` prints."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from rich.console import Console

from perdure.cli.agents import _table
from perdure.client.presence import Replica


def test_a_narrow_terminal_still_shows_who_is_there_and_how():
    now = datetime.now(UTC).isoformat()
    long = "a-machine-agent-research_team-fa5501c7-research-planner"
    there = [Replica("research-planner", long, 12, "warning", {}, "0.1.0", now)]
    console = Console(file=io.StringIO(), width=80)
    console.print(_table(there, {}))
    text = console.file.getvalue()
    for word in ("research-planner ", "warning", "revision 12"):
        assert word in text
