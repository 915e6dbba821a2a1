"""An example of each model, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from perdure.edge import models

AT: Final = "2026-11-21T09:30:00+00:00"
_STEP: Final = {
    "seq": 1,
    "path": "1",
    "kind": "step",
    "name": "read",
    "status": "completed",
    "result": ["pens", "paper"],
    "attempt": 1,
}
_RUN: Final = {"run_id": "r-1", "agent": "invoices", "workflow": "run"}
_LISTED: Final = {
    **_RUN,
    "session_id": None,
    "parent_run_id": None,
    "status": "completed",
    "created_at": AT,
    "finished_at": AT,
}
_CALL: Final = {
    "run_id": "r-1",
    "call_id": "call_1f",
    "agent": "assistant",
    "session_id": "talk",
    "tool": "refund",
    "arguments": {"order": "7"},
    "arguments_hash": "9f2c…",
    "status": "waiting",
}
_SCHEDULE: Final = {
    "name": "nightly",
    "agent": "reporter",
    "workflow": "run",
    "cron": "0 6 * * *",
    "timezone": "UTC",
    "paused": False,
    "declared": False,
    "retired_at": None,
    "next_at": "2026-11-22T06:00:00+00:00",
    "last_at": None,
    "last_run_id": None,
}
EXAMPLES: Final[dict[type[BaseModel], dict[str, Any]]] = {
    models.Step: _STEP,
    models.RunSummary: _LISTED,
    models.Runs: {"runs": [_LISTED], "next_cursor": None},
    models.Run: {**_RUN, "status": "completed", "task": {"file": "may.csv"}, "output": {"sent": 1}, "steps": [_STEP]},
    models.State: {"run_id": "r-1", "status": "cancelled", "agent": "invoices"},
    models.BulkDone: {
        "status": "success",
        "action": "cancel",
        "done": 3,
        "skipped": 0,
        "failed": [],
        "next_cursor": None,
    },
    models.Tree: {
        "run_id": "r-1",
        "root": "r-1",
        "runs": [{**_LISTED, "above": None, "relation": None}],
        "more": False,
    },
    models.Queues: {"queues": [{"queue": "slow", "pending": 1, "running": 2}], "next_cursor": None},
    models.Schedule: _SCHEDULE,
    models.Schedules: {"schedules": [_SCHEDULE], "next_cursor": None},
    models.Backfill: {"from": "2026-11-01T00:00:00Z", "to": "2026-11-03T00:00:00Z"},
    models.Backfilled: {"name": "nightly", "moments": 2, "run_ids": ["nightly-1", "nightly-2"]},
    models.Cancel: {"reason": "it is not needed any more"},
    models.Fork: {"step": "read"},
    models.Decision: {"arguments_hash": "9f2c…", "decision": "approve", "reason": "he is right"},
    models.Approval: _CALL,
    models.Approvals: {"approvals": [_CALL], "next_cursor": None},
    models.Said: {"session_id": "talk", "run_id": "r-1", "response": "I am an assistant.", "status": "completed"},
    models.HistoryMessage: {"role": "user", "content": "Who are you?"},
    models.History: {
        "session_id": "talk",
        "agent": "assistant",
        "history": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "An assistant."}],
        "next_cursor": None,
    },
    models.Session: {"session_id": "talk"},
    models.Forgotten: {"status": "success", "session_id": "talk", "messages": 2},
    models.Ticket: {"ticket": "hV3…", "expires_in": 60},
    models.Agent: {"name": "assistant", "replicas": 2, "since": AT},
    models.Agents: {"agents": [{"name": "assistant", "replicas": 2, "since": AT}], "next_cursor": None},
    models.ConfigChange: {"configurations": {"agent_role": "a kind librarian", "llm_temperature": None}},
    models.ConfigWhole: {"configurations": {"agent_role": "a kind librarian"}},
    models.Rollback: {"revision": 7},
    models.ConfigHistory: {
        "history": [{"revision": 7, "config_key": "agent_role", "old_value": None, "new_value": "a kind librarian"}],
        "next_cursor": None,
    },
    models.Health: {"status": "ok", "checks": {"nats": {"status": "ok"}, "postgres": {"status": "ok"}}},
}
EVENTS: Final = (
    'id: 1\nevent: step.completed\ndata: {"seq":1,"type":"step.completed","run_id":"r-1","agent":"invoices",'
    f'"time":"{AT}","data":{{"name":"read","path":"1","kind":"step","attempt":1,"result":["pens","paper"]}}}}\n\n'
)


def put(schemas: dict[str, dict[str, Any]]) -> None:
    """Put them where the document has none yet."""
    for model, example in EXAMPLES.items():
        if model.__name__ in schemas:
            schemas[model.__name__].setdefault("example", example)
