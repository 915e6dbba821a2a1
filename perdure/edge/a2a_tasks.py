"""Runs as tasks of A2A, and messages of A2A as tasks of runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from a2a.types import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from perdure.errors import InvalidRequest

STATES: Final[Mapping[str, Any]] = {
    "pending": TaskState.TASK_STATE_SUBMITTED,
    "running": TaskState.TASK_STATE_WORKING,
    "waiting": TaskState.TASK_STATE_WORKING,
    "paused": TaskState.TASK_STATE_WORKING,
    "completed": TaskState.TASK_STATE_COMPLETED,
    "failed": TaskState.TASK_STATE_FAILED,
    "dead": TaskState.TASK_STATE_FAILED,
    "cancelled": TaskState.TASK_STATE_CANCELED,
    # it goes on when somebody of the platform has seen to it
    "blocked": TaskState.TASK_STATE_INPUT_REQUIRED,
    "needs_review": TaskState.TASK_STATE_INPUT_REQUIRED,
}


def what_to_do(message: Message) -> Any:
    """The task of a run: the message's text, or the JSON of its one data part. Raises `InvalidRequest`."""
    kinds = {part.WhichOneof("content") for part in message.parts}
    if kinds == {"text"} and (text := "".join(part.text for part in message.parts)).strip():
        return text
    if kinds == {"data"} and len(message.parts) == 1:
        return _plain(MessageToDict(message.parts[0].data))
    raise InvalidRequest("field 'message.parts': agents take text parts with something in them, or one data part")


def named_agent(request: Any) -> str | None:
    """The agent that a message to the platform names in its metadata, or the request in its own.

    Raises `InvalidRequest` for what is no name, and for two that differ.
    """
    said = [each.metadata["agent"] for each in (request.message, request) if "agent" in each.metadata]
    if not said:
        return None
    if not all(isinstance(each, str) and each == said[0] for each in said):
        raise InvalidRequest("field 'metadata.agent': it is the name of one agent")
    return str(said[0])


def _plain(value: Any) -> Any:
    """JSON in which whole numbers are whole again: the protocol's library knows only fractions."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def task_of(run: Mapping[str, Any]) -> Task:
    """A run as a task; its output is its artifact."""
    task = Task(id=run["run_id"], context_id=run.get("session_id") or run["run_id"], status=status_of(run))
    if run["status"] == "completed" and "output" in run:
        task.artifacts.append(_artifact(run["output"]))
    return task


def pushed(run: Mapping[str, Any], form: str) -> bytes:
    """What a push notification says of a run: the task, as clients of this version of the protocol read it."""
    task = task_of(run)
    if form == "0.3":
        from a2a.compat.v0_3.conversions import to_compat_task  # noqa: PLC0415 -- rare

        return to_compat_task(task).model_dump_json(by_alias=True, exclude_none=True).encode()
    return orjson.dumps({"task": MessageToDict(task)})


def status_of(run: Mapping[str, Any], text: str | None = None) -> TaskStatus:
    """How a run is; with `text` as what is said of it, else why it failed."""
    status = TaskStatus(state=STATES.get(run["status"], TaskState.TASK_STATE_WORKING))
    status.timestamp.FromDatetime(datetime.now(UTC))
    said = text or (run.get("error") or {}).get("message")
    if said:
        status.message.CopyFrom(
            Message(
                message_id=f"{run['run_id']}-status",
                task_id=run["run_id"],
                context_id=run.get("session_id") or run["run_id"],
                role=Role.ROLE_AGENT,
                parts=[Part(text=str(said))],
            )
        )
    return status


def told(run: Mapping[str, Any], text: str | None = None) -> TaskStatusUpdateEvent:
    """The word of a task's state."""
    context = run.get("session_id") or run["run_id"]
    return TaskStatusUpdateEvent(task_id=run["run_id"], context_id=context, status=status_of(run, text))


def given(run: Mapping[str, Any]) -> TaskArtifactUpdateEvent:
    """The word of a task's output."""
    context = run.get("session_id") or run["run_id"]
    return TaskArtifactUpdateEvent(
        task_id=run["run_id"], context_id=context, artifact=_artifact(run["output"]), last_chunk=True
    )


def _artifact(output: Any) -> Artifact:
    if isinstance(output, str):
        part = Part(text=output)
    else:
        part = Part(data=ParseDict(orjson.loads(orjson.dumps(output)), Value()), media_type="application/json")
    return Artifact(artifact_id="output", name="output", parts=[part])
