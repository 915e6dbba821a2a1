"""What the routes take and give, as OpenAPI shows it. Replies may have more fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from perdure.fields import AgentName, Configurations, Id, Name, Revision, RunStatus
from perdure.messages import Message, RunFilter, ScheduleName


class Reply(BaseModel):
    """What all replies share."""

    model_config = ConfigDict(extra="allow")


class Started(Reply):
    """A run that is durable. With `Prefer: wait=…` also what became of it in that time."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"example": {"instance_id": "r-1", "run_id": "r-1", "status_url": "/runs/r-1"}}
    )

    instance_id: Id
    run_id: Id
    status_url: str
    status: RunStatus | None = None
    output: Any = None
    error: dict[str, Any] | None = None


class Step(Reply):
    """A journaled outcome of a run."""

    seq: int
    path: str
    kind: str
    name: str
    status: str
    input: dict[str, Any] | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    attempt: int
    process_id: str | None = None
    tokens: dict[str, int | None] | None = None


class RunSummary(Reply):
    """A run in a list."""

    run_id: Id
    agent: AgentName
    workflow: str
    session_id: str | None
    parent_run_id: str | None
    status: RunStatus
    created_at: str
    finished_at: str | None


class Run(Reply):
    """A run with its steps; `output` when it is completed, `error` when it ended otherwise."""

    run_id: Id
    agent: AgentName
    status: RunStatus
    workflow: str
    session_id: str | None = None
    task: Any = None
    output: Any = None
    error: dict[str, Any] | None = None
    steps: list[Step] = []


class Runs(Reply):
    """A page of runs, newest first."""

    runs: list[RunSummary]
    next_cursor: str | None


class State(Reply):
    """Where a run is after a request about it."""

    run_id: Id
    status: str
    agent: AgentName


class Bulk(Message):
    """One action on the runs of a filter, `limit` at a time; `dry_run` only counts them."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_extra={"example": {"action": "cancel", "filter": {"agent": "invoices"}, "dry_run": True}},
    )

    action: Literal["cancel", "terminate", "pause", "resume", "restart"]
    filter: RunFilter = RunFilter()
    all: bool = Field(False, description="Must be said when the filter is empty.")
    dry_run: bool = False
    reason: str | None = Field(None, max_length=1000)
    limit: int = Field(100, ge=1, le=500)
    cursor: str | None = Field(None, max_length=512)


class BulkDone(Reply):
    """What became of a page: how many were `done` and `skipped`, which `failed`; of a dry run, how many `matched`."""

    status: Literal["success"] = "success"
    action: str
    next_cursor: str | None


class Tree(Reply):
    """A family of runs, each with the run `above` it and its `relation` to that; `more`: there are others."""

    run_id: Id
    root: Id
    runs: list[dict[str, Any]]
    more: bool


class Queues(Reply):
    """Queues with their depth, their limits, and why their runs wait."""

    queues: list[dict[str, Any]]
    next_cursor: str | None = None


class Schedule(Reply):
    """A cron expression, or an interval, whose moments become runs."""

    name: ScheduleName
    agent: AgentName
    workflow: str
    cron: str
    timezone: str
    paused: bool
    declared: bool
    retired_at: str | None
    next_at: str | None
    last_at: str | None
    last_run_id: str | None


class Schedules(Reply):
    """A page of schedules, by name."""

    schedules: list[Schedule]
    next_cursor: str | None


class Backfill(Message):
    """From when to when moments that have no run get one."""

    since: AwareDatetime = Field(alias="from")
    to: AwareDatetime


class Backfilled(Reply):
    """How many moments there were, and the runs that were made."""

    name: Id
    moments: int
    run_ids: list[str]


class Cancel(Message):
    """Why a run is cancelled."""

    reason: str | None = Field(None, max_length=1000)


class Fork(Message):
    """Up to which step (its path, name or seq) a run is copied."""

    step: Name


class Decision(Message):
    """A decision about a tool call, bound to the hash of the arguments that were seen."""

    arguments_hash: Name
    decision: Literal["approve", "deny", "edit"]
    arguments: dict[str, Any] | None = None
    reason: str | None = Field(None, max_length=10_000)


class Approval(Reply):
    """A tool call that waits, or waited, for a person."""

    run_id: Id
    call_id: str
    agent: AgentName
    session_id: str
    tool: str
    arguments: dict[str, Any]
    arguments_hash: str
    status: str


class Approvals(Reply):
    """A page of approvals, newest first."""

    approvals: list[Approval]
    next_cursor: str | None


class Chat(Message):
    """What is said to an agent. Without `session_id` a conversation begins."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", json_schema_extra={"example": {"agent": "assistant", "prompt": "Who are you?"}}
    )

    agent: AgentName
    prompt: str = Field(min_length=1)
    session_id: Id | None = None
    timeout: float = Field(60.0, gt=0, le=3600, description="Seconds to wait for the answer; the run goes on after.")


class Said(Reply):
    """The answer; null with `status` when it is not there in time."""

    session_id: Id
    run_id: Id
    response: Any
    status: str


class HistoryMessage(Reply):
    """A message of a conversation."""

    role: str
    content: str | None


class History(Reply):
    """Messages in their order."""

    session_id: str
    agent: AgentName
    history: list[HistoryMessage]
    next_cursor: str | None


class Session(Message):
    """A conversation; `agent` when several have one under this id."""

    session_id: Id
    agent: AgentName | None = None


class Forgotten(Reply):
    """How many messages a conversation has lost."""

    status: Literal["success"] = "success"
    session_id: Id
    messages: int


class Ticket(Reply):
    """A ticket, good for one stream; `expires_in` is in seconds."""

    ticket: str
    expires_in: int


class Agent(Reply):
    """An agent that has live processes."""

    name: AgentName
    replicas: int
    since: str


class Agents(Reply):
    """The agents that are there."""

    agents: list[Agent]
    next_cursor: str | None


class Configuration(Reply):
    """What an agent gets: values as text, and the revision that they stand on."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {"status": "success", "configurations": {"agent_role": "a kind librarian"}, "revision": 7}
        },
    )

    status: Literal["success"] = "success"
    configurations: dict[str, str]
    revision: int


class ConfigChange(Message):
    """New values by key, `null` to take one away; `expected_revision` refuses to overwrite others."""

    configurations: Configurations = Field(min_length=1)
    expected_revision: Revision | None = None


class ConfigWhole(Message):
    """All values of an agent's own layer: what is not named is taken away."""

    configurations: Configurations
    expected_revision: Revision | None = None


class Rollback(Message):
    """The revision whose rows come back."""

    revision: Revision


class ConfigHistory(Reply):
    """A page of changes, newest first."""

    history: list[dict[str, Any]]
    next_cursor: str | None


class Health(Reply):
    """How this process is: the worst of its checks."""

    status: Literal["ok", "warning", "critical"]
    checks: dict[str, Any] = {}
