"""Events as the journal knows them, for when the event stream has lost them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from perdure.client.types import TERMINAL, RunEvent

_TYPES: Final = {
    "completed": "step.completed",
    "failed": "step.failed",
    "timed_out": "step.failed",
    "waiting": "step.started",
    "retrying": "step.retrying",
}


def step_event(run: Mapping[str, Any], step: Mapping[str, Any]) -> RunEvent:
    """The event of one of the `steps` of `run.get`: equal in `seq`, `type` and `time` to the one that was published."""
    if step["kind"] == "event":
        said = step["result"] or {"type": step["name"], "data": {"large": step.get("large", {}).get("result")}}
        return _event(run, step["seq"], str(said.get("type", "event")), step["finished_at"], said.get("data") or {})
    data = {key: step[key] for key in ("name", "path", "kind", "attempt")}
    data |= {key: step[key] for key in ("result", "error") if step.get(key) is not None}
    return _event(run, step["seq"], _TYPES[step["status"]], step["finished_at"], data)


def end_event(run: Mapping[str, Any], seq: int) -> RunEvent | None:
    """The terminal event of a run that has ended, None for one that has not."""
    if run["status"] not in TERMINAL:
        return None
    data = {key: run[key] for key in ("error", "output") if run.get(key) is not None}
    time = run.get("finished_at") or datetime.now(UTC).isoformat()
    return _event(run, seq, f"run.{run['status']}", time, data)


def _event(run: Mapping[str, Any], seq: int, kind: str, time: str, data: dict[str, Any]) -> RunEvent:
    return {"seq": seq, "type": kind, "run_id": run["run_id"], "agent": run["agent"], "time": time, "data": data}
