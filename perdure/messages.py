"""The requests that Perdure's subjects take, validated where they arrive.

An error on any of them is answered as `{"status": "error", "error": {"code": …, "message": …}}` (`perdure.bus.wire`).
Fields that a model does not know are ignored, so that newer clients may talk to older services.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from perdure.errors import InvalidRequest
from perdure.fields import (
    AgentName,
    Configurations,
    Id,
    Moment,
    Name,
    PositiveSeconds,
    Revision,
    Seconds,
    Statuses,
    Tenant,
)
from perdure.subjects import SCHEDULE_NAME, free_subject

SHOWN: Final = 3  # problems named in one error


class Message(BaseModel):
    """What all requests share: immutable, unknown fields ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _spelt(value: Any) -> Any:
    """A callback may be said as its URL or subject alone."""
    if isinstance(value, str):
        return {"url": value} if "://" in value else {"subject": value}
    return value


class Callback(Message):
    """Whom to tell of a run's end: an HTTP `url`, or a NATS `subject`.

    `secret` names the environment variable of the scheduler that signs it, `secret://env/PERDURE_CALLBACK_SECRET_…`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(None, max_length=2048)
    subject: str | None = Field(None, max_length=255)
    secret: str | None = Field(None, pattern=r"^secret://env/PERDURE_CALLBACK_SECRET_[A-Z0-9_]{1,100}$")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.url is None) == (self.subject is None):
            raise ValueError("give either 'url' or 'subject'")
        if self.subject is not None:
            free_subject(self.subject)
            if self.secret is not None:
                raise ValueError("'secret' signs a 'url'; a subject is protected by the permissions of NATS")
        return self


class Place(Message):
    """In which line a run stands, and where: a higher `priority` is first, `fair_key`s take turns."""

    queue: AgentName | None = None
    priority: Annotated[int, Field(strict=True, ge=-1000, le=1000)] = 0
    fair_key: Name | None = None


PLAIN: Final = frozenset({"task", "workflow", "run_id", "session_id", "callback", "timeout"})
"""Fields of a start that go with all others, and say nothing of its place and time."""

CALL_TOOL: Final = "call-tool"
"""The workflow of agents with tools that calls one of them: its task is `{"tool": name, "arguments": object}`."""


class RunStart(Place):
    """`run.start.<agent>`: accept a run. `task` is any JSON, `null` included, and must be there.

    It begins `delay` seconds from now, or at `start_at`. A run holds its `dedup_key` until its end, or `dedup_window`
    seconds: until then a start with the key is that run. Starts with one `debounce_key` become one run with the newest
    task, `debounce` seconds after the last of them, `debounce_max` seconds after the first at the latest.
    """

    task: Any
    workflow: Name = "run"
    run_id: Id | None = None
    session_id: Id | None = None
    callback: Annotated[Callback, BeforeValidator(_spelt)] | None = None
    delay: Seconds | None = None
    start_at: Moment | None = None
    dedup_key: Name | None = None
    dedup_window: PositiveSeconds | None = None
    debounce_key: Name | None = None
    debounce: PositiveSeconds | None = None
    debounce_max: PositiveSeconds | None = None

    @model_validator(mode="after")
    def _one_time_and_one_key(self) -> Self:
        if self.model_fields_set <= PLAIN:
            return self
        pairs = (
            ("start_at", self.delay is not None and self.start_at is not None, "leave it out, or delay"),
            ("dedup_window", self.dedup_window is not None and self.dedup_key is None, "needs a dedup_key"),
            ("debounce", self.debounce is not None and self.debounce_key is None, "needs a debounce_key"),
            ("debounce_max", self.debounce_max is not None and self.debounce is None, "needs debounce"),
            ("debounce_key", self.debounce_key is not None and self.debounce is None, "needs debounce, in seconds"),
            (
                "debounce_key",
                self.debounce_key is not None and self.dedup_key is not None,
                "leave it out, or dedup_key",
            ),
            ("delay", self.debounce_key is not None and self.delay is not None, "debounce says when it begins"),
            ("start_at", self.debounce_key is not None and self.start_at is not None, "debounce says when it begins"),
            ("debounce_max", (self.debounce_max or 1e12) < (self.debounce or 0), "must be at least debounce"),
        )
        for field, wrong, why in pairs:
            if wrong:
                raise PydanticCustomError("combination", "{why}", {"why": why, "field": field})
        return self

    def begins(self, now: datetime) -> datetime | None:
        """When the run may begin, None for at once."""
        if self.start_at is not None:
            return self.start_at if self.start_at > now else None
        return now + timedelta(seconds=self.delay) if self.delay else None


class RunAsk(RunStart):
    """`run.ask.<agent>`: the same, and wait for its outcome, at most `timeout` seconds."""

    timeout: float = Field(60.0, gt=0, le=86_400)


class RunRef(Message):
    """`run.resume`, `run.pause`: one run."""

    run_id: Id


class RunEnd(RunRef):
    """`run.cancel`, `run.terminate`: one run, and why; the run's error says it."""

    reason: str | None = Field(None, max_length=1000)


class RunRestart(RunRef):
    """`run.restart`: a new run with the task of this one; the same `new_run_id` again is the same new run."""

    new_run_id: Id | None = None


class RunGet(RunRef):
    """`run.get`: one run and its steps after seq `after`, at most 1,000; `steps: false` leaves them out."""

    steps: bool = True
    after: int = Field(0, ge=0, lt=2**63)


class RunHistory(RunRef):
    """`run.history`: what a replay of the run would read, its rows after seq `after`, a page at a time."""

    after: int = Field(0, ge=0, lt=2**63)


class RunSignal(RunRef):
    """`run.signal`: a signal to a run; with `id`, the same signal sent twice counts once."""

    name: Name
    payload: Any = None
    id: Name | None = None


class Parts(Message):
    """In the place of a request's body that one message does not carry: `payload.put` gave the ids of its parts."""

    parts: list[Id] = Field(min_length=1, max_length=4096)
    hash: Id


class PayloadGet(RunRef):
    """`payload.get`: the JSON text of a run's value, from character `offset` on; with `seq`, of a step's."""

    what: Literal["task", "output", "error", "result"]
    seq: int | None = Field(None, ge=1, lt=2**63)
    offset: int = Field(0, ge=0, lt=2**40)


class RunApprove(RunRef):
    """`run.approve`: a decision about one tool call, bound to the hash of its arguments; `edit` brings new ones."""

    call_id: Name
    arguments_hash: Name
    decision: Literal["approve", "deny", "edit"]
    arguments: dict[str, Any] | None = None
    reason: str | None = Field(None, max_length=10_000)
    decided_by: Name | None = None


class RunApprovals(Message):
    """`run.approvals`: tool calls that wait for a person (or `status`: any), newest first, `limit` at a time."""

    status: Literal["pending", "approved", "denied", "edited", "expired", "any"] = "pending"
    agent: AgentName | None = None
    run_id: Id | None = None
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=512)


class RunFork(RunRef):
    """`run.fork`: a new run that begins as a copy of this one up to `step`."""

    step: Name
    new_run_id: Id | None = None


class RunFilter(Message):
    """Which runs: all that fit every field that is given; `status` is one state or a list, times are ISO 8601."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: AgentName | None = None
    status: Statuses | None = None
    workflow: Name | None = None
    version: str | None = Field(None, max_length=256)
    session_id: Id | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None


class RunBulk(Message):
    """`run.bulk`: one action on the runs of a filter, `limit` at a time; `dry_run` only counts them.

    `all: true` must be said when the filter is empty. `cursor` is the `next_cursor` of the page before. `tenant` leaves
    those of others alone (`default` is the platform's own); without it the runs of all tenants are meant. For `signal`
    there are its `name`, `payload`, and `id`, which makes it once for each run, however often a page is asked for.
    """

    action: Literal["cancel", "terminate", "pause", "resume", "restart", "signal"]
    name: Name | None = None
    payload: Any = None
    id: Name | None = None
    filter: RunFilter = RunFilter()
    tenant: Tenant | None = None
    all: bool = False
    dry_run: bool = False
    reason: str | None = Field(None, max_length=1000)
    limit: int = Field(100, ge=1, le=500)
    cursor: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _a_signal_has_a_name(self) -> RunBulk:
        for field in ("name", "id"):
            said = getattr(self, field) is not None
            if said and self.action != "signal":
                raise ValueError(f"field {field!r} goes with the action signal, and with no other")
            if not said and self.action == "signal" and not self.dry_run:
                raise ValueError(f"field {field!r} is missing: a signal to many has a name, and an id to be sent once")
        return self


class RunList(Message):
    """`run.list`: runs, newest first, `limit` at a time; `cursor` is the `next_cursor` of the page before.

    `status` is one state or a list.
    """

    agent: AgentName | None = None
    status: Statuses | None = None
    workflow: Name | None = None
    version: str | None = Field(None, max_length=256)
    created_after: Moment | None = None
    created_before: Moment | None = None
    session_id: Id | None = None
    parent_run_id: Id | None = None
    queue: AgentName | None = None
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=512)


class SessionList(Message):
    """`session.list`: an agent's conversations, last used first; `cursor` is the page before's `next_cursor`."""

    agent: AgentName
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=512)


class SessionRef(Message):
    """`session.reset`: one conversation; `agent` may be left out while only one agent has a session of this id."""

    session_id: Id
    agent: AgentName | None = None


class SessionHistory(SessionRef):
    """`session.history`: the messages after seq `after`, oldest first, `limit` at a time."""

    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(500, ge=1, le=1000)


class QueueList(Message):
    """`queue.list`: the queues there are, by name, or one."""

    queue: AgentName | None = None


Overlap = Literal["allow", "skip", "buffer_one"]
ScheduleName = Annotated[str, Field(pattern=f"^{SCHEDULE_NAME.pattern}$")]


class ScheduleSpec(Place):
    """What a schedule is: the moments of `cron` in `timezone` become runs of `agent`.

    `missed` says what becomes of moments at which no scheduler was up: `skip`, `latest` (one run for the last of them)
    or `all` (the newest `missed_limit`). `overlap`: `skip` leaves a moment out while the run of an earlier one goes on,
    `buffer_one` while that has not begun.
    """

    agent: AgentName
    cron: Annotated[str, Field(min_length=1, max_length=256)]
    timezone: Name = "UTC"
    workflow: Name = "run"
    task: Any = None
    missed: Literal["skip", "latest", "all"] = "latest"
    missed_limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100
    overlap: Overlap = "allow"
    paused: Annotated[bool, Field(strict=True)] | None = None


class ScheduleSet(ScheduleSpec):
    """`schedule.set`: makes a schedule; the same name again changes it."""

    name: ScheduleName


class ScheduleRef(Message):
    """`schedule.get`, `schedule.pause`, `schedule.resume`, `schedule.delete`: one schedule."""

    name: ScheduleName


class ScheduleBackfill(ScheduleRef):
    """`schedule.backfill`: runs for the moments from `from` to `to` that have none yet."""

    since: Moment = Field(alias="from")
    to: Moment


class ScheduleList(Message):
    """`schedule.list`: schedules by name, `limit` at a time; `cursor` is the page before's `next_cursor`."""

    agent: AgentName | None = None
    limit: int = Field(50, ge=1, le=500)
    cursor: ScheduleName | None = None


class ConfigGet(Message):
    """`config.get.<agent>`: the subject names the agent; the body may repeat it."""

    agent_name: str | None = None


class ConfigSet(Message):
    """`config.set.<agent>`: new values by key, `null` to unset; `expected_revision` refuses to overwrite others."""

    configurations: Configurations = Field(min_length=1)
    expected_revision: Revision | None = None
    changed_by: str | None = Field(None, max_length=256)


class ConfigHistory(Message):
    """`config.history.<agent>`: the last changes, newest first."""

    limit: int = Field(50, ge=1, le=1000)


class ConfigRollback(Message):
    """`config.rollback.<agent>`: set the agent's configuration back to what it was at `revision`."""

    revision: Revision
    changed_by: str | None = Field(None, max_length=256)


AnyMessage = TypeVar("AnyMessage", bound=Message)


def parse(model: type[AnyMessage], data: bytes) -> AnyMessage:
    """Read `data` (JSON; nothing at all counts as `{}`) as a `model`.

    Raises `InvalidRequest` that names each bad field and what it should be; values are not repeated, as one may be a
    secret. The character U+0000 is refused here, because no Postgres text can hold it.
    """
    try:
        body = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}; send a JSON object") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, like {_example(model)}")
    if b"\\u0000" in data and (where := _find_nul(body)) is not None:
        raise InvalidRequest(f"field {where!r} holds the character U+0000; remove it", fields=[where])
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise told([("field", problem) for problem in problems]) from None


def told(problems: Sequence[tuple[str, Mapping[str, Any]]]) -> InvalidRequest:
    """The error for what pydantic has found, each with the word for its place: a `field`, a `parameter`, a `header`."""
    text = "; ".join(_problem(place, each) for place, each in problems[:SHOWN])
    if len(problems) > SHOWN:
        text += f"; and {len(problems) - SHOWN} more"
    return InvalidRequest(text, fields=[_field(each) for _, each in problems])


def misfit(error: ValidationError, whole: str, *, most: int = SHOWN) -> str:
    """What pydantic has found, place by place, without the values, as one may be a secret; `whole` names the top."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    text = "; ".join(f"{'.'.join(map(str, each['loc'])) or whole}: {each['msg']}" for each in found[:most])
    return f"{text}; and {len(found) - most} more" if len(found) > most else text


def _field(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "combination":
        return str(problem["ctx"]["field"])
    return ".".join(str(part) for part in problem["loc"])


def _problem(place: str, problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return f"{place} {_field(problem)!r} is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place} {_field(problem)!r}: {message[:1].lower()}{message[1:]}"


def _example(model: type[Message]) -> str:
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    return "{" + ", ".join(f'"{name}": …' for name in needed) + "}"


def _find_nul(body: dict[str, Any]) -> str | None:
    """Where a text holds U+0000, as a dotted path; the bytes alone cannot tell it from an escaped backslash."""
    pending: list[tuple[str, Any]] = list(body.items())
    if any("\0" in key for key in body):
        return next(key for key in body if "\0" in key)
    while pending:
        path, value = pending.pop()
        if isinstance(value, str) and "\0" in value:
            return path
        if isinstance(value, dict):
            if any("\0" in key for key in value):
                return path
            pending.extend((f"{path}.{key}", each) for key, each in value.items())
        elif isinstance(value, list):
            pending.extend((f"{path}.{index}", each) for index, each in enumerate(value))
    return None
