"""What happens to a run, in words: for protocols that tell of progress by a text."""

from __future__ import annotations

from perdure.client.types import RunEvent


def progress(event: RunEvent) -> str | None:
    """What is told of an event; None for nothing."""
    data = event["data"]
    match event["type"]:
        case "step.completed":
            return f"{data.get('name')} is done"
        case "tool.started":
            return f"calling {data.get('tool')}"
        case "tool.progress":
            return f"{data.get('fraction') or 0:.0%} {data.get('text') or ''}".strip()
        case "approval.requested":
            return f"{data.get('tool')} waits for a person (call_id {data.get('call_id')})"
        case _:
            return None
