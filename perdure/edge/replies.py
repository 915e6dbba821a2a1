"""How routes answer, and how OpenAPI says so."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import orjson
from fastapi import Header, Path, Query, Response

from perdure import subjects
from perdure.edge.examples import EVENTS
from perdure.edge.problems import MEDIA_TYPE
from perdure.errors import InvalidRequest

_SAID: Final = {
    400: "The request is malformed; `detail` names the field and the fix.",
    401: "No credentials, or none that count.",
    403: "The caller may not do this.",
    404: "There is no such agent, run, session or revision, or the caller may not see it.",
    409: "The state has moved on: another task under the same id, a second decision, an older revision.",
    413: "A payload over the limit.",
    422: "A run ended without an output; `run_id` says which.",
    429: "Too much for now; `Retry-After` says when it may go through.",
    500: "A fault of ours; the log has it under `error_id`.",
    503: "A part that is needed is not there right now; nothing is lost, ask again.",
}


def _errors(kind: str, schema: str) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {status: {"description": text, "content": content} for status, text in _SAID.items()}


ERRORS: Final = _errors(MEDIA_TYPE, "Problem")
OPENAI_ERRORS: Final = _errors("application/json", "OpenAIProblem")
"""The same in the form that clients of OpenAI read."""
OPENAI: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "As OpenAI's API answers it.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}
OPENAI_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "As OpenAI's API answers it; with `stream`, its events.",
        "content": {**OPENAI[200]["content"], "text/event-stream": {"schema": {"type": "string"}}},
    }
}
STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EVENTS}},
    }
}

RunId = Annotated[str, Path(pattern=f"^{subjects.RUN_ID.pattern}$", description="A run.", examples=["r-1"])]
SessionId = Annotated[str, Path(pattern=f"^{subjects.RUN_ID.pattern}$", description="A conversation.")]
Limit = Annotated[int, Query(ge=1, le=500, description="At most so many.")]
Cursor = Annotated[str | None, Query(max_length=600, description="`next_cursor` of the page before.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=256,
        description="The same key and body again: the same run. With another body: 409.",
    ),
]
Prefer = Annotated[
    str | None, Header(max_length=256, description="`wait=10`: answer when the run has ended, or after 10 seconds.")
]

LONGEST_WAIT: Final = 300.0
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?(?=$|[,;\s])")


def reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(data, default=str), status, dict(headers or {}), "application/json")


def seconds_to_wait(prefer: str | None) -> float | None:
    """What `Prefer: wait=…` says, at most five minutes."""
    found = _WAIT.search(prefer or "")
    return min(float(found[1]), LONGEST_WAIT) if found else None


def run_id_of(key: str | None, run_id: str | None, *scope: str | None) -> str | None:
    """The run that an `Idempotency-Key` names within a scope (tenant, agent), or the one that the body names.

    Raises `InvalidRequest` when both name one.
    """
    if key is None:
        return run_id
    if run_id is not None:
        raise InvalidRequest("field 'run_id': leave it out, the header Idempotency-Key names the run")
    parts = "\n".join([*(part or "" for part in scope), key])
    return "k-" + hashlib.sha256(parts.encode()).hexdigest()[:40]


def named(name: str) -> str:
    """An agent's name as it stands in a path. Raises `InvalidRequest`."""
    try:
        return subjects.agent_name(name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
