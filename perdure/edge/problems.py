"""Errors over HTTP: problem details (RFC 9457) with the codes that the same errors have on NATS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import Any, Final
from uuid import uuid4

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from perdure.errors import API_ERRORS, ApiError, InternalError, InvalidRequest, RateLimited, RunFailed
from perdure.messages import told

MEDIA_TYPE: Final = "application/problem+json"

log = structlog.get_logger(__name__)


class Problem(BaseModel):
    """An error. `code` is the same on NATS; a failed run's problem has `run_id`, a malformed request's `fields`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "urn:perdure:problem:not_found",
                "title": "Not Found",
                "status": 404,
                "detail": "there is no run 'nope'",
                "code": "not_found",
                "instance": "/runs/nope",
                "request_id": "6f1c0b0e9d0a4d6c",
            }
        },
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    request_id: str


OPENAI_SCHEMA: Final[dict[str, Any]] = {
    "title": "OpenAIProblem",
    "description": "An error as clients of OpenAI read it; `code` is the same on NATS.",
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                **{name: {"type": "string"} for name in ("message", "type", "code", "request_id", "run_id")},
                "param": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code", "request_id"],
        }
    },
    "required": ["error"],
}


def problem_body(error: ApiError, *, path: str, request_id: str, status: int | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    number = status or error.http_status
    details = dict(error.details)
    if isinstance(error, RunFailed):
        details |= {"run_status": error.status, "cause": error.error}
    return {
        **details,
        "type": f"urn:perdure:problem:{error.code}",
        "title": HTTPStatus(number).phrase,
        "status": number,
        "detail": error.message,
        "code": error.code,
        "instance": path,
        "request_id": request_id,
    }


def problem_headers(error: ApiError) -> dict[str, str]:
    """What the status wants beside the body."""
    if isinstance(error, RateLimited):
        return {"Retry-After": str(max(1, ceil(error.retry_after)))}
    if error.http_status == HTTPStatus.SERVICE_UNAVAILABLE:
        return {"Retry-After": "1"}
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    return {}


def install(app: FastAPI) -> None:
    """Answer every error of the app as a problem."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def answer(
    request: Request, error: ApiError, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response for an error, in the form that the route's clients read."""
    request_id = request.scope["state"]["request_id"]
    if request.url.path.startswith("/v1/"):
        body = openai_error(error, request_id)
        media_type = "application/json"
    else:
        body = problem_body(error, path=request.url.path, request_id=request_id, status=status)
        media_type = MEDIA_TYPE
    return Response(
        orjson.dumps(body, default=str),
        status or error.http_status,
        {**problem_headers(error), **(headers or {})},
        media_type,
    )


def openai_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """The form of errors that OpenAI clients read; everything of a problem is beside it."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kinds |= {404: "not_found_error", 429: "rate_limit_error"}
    fields = error.details.get("fields") or [None]
    return {
        "error": {
            "message": error.message,
            "type": kinds.get(error.http_status, "api_error"),
            "param": fields[0],
            "code": error.code,
            "request_id": request_id,
            **({"run_id": error.run_id} if isinstance(error, RunFailed) else {}),
        }
    }


def unexpected(error: BaseException) -> InternalError:
    """A fault of ours: the log has it under the id that the caller gets."""
    error_id = uuid4().hex
    log.error("a route failed", action="http.failed", error_id=error_id, exc_info=error)
    return InternalError(f"an internal error; the log has it as error_id {error_id}", error_id=error_id)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 -- registered for it
    return answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- registered for it
    return answer(request, from_validation(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    """What the framework says by itself: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for it
    if isinstance(error.__cause__, ApiError):  # raised while the framework read the body
        return answer(request, error.__cause__)
    code = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large", 503: "unavailable"}
    kind = API_ERRORS[code.get(error.status_code, "invalid_request" if error.status_code < 500 else "internal")]
    said = {
        404: f"there is no route {request.url.path}; /docs lists them",
        405: f"{request.method} is not for {request.url.path}; /docs lists what is",
    }
    text = said.get(error.status_code, str(error.detail))
    return answer(request, kind(text), status=error.status_code, headers=error.headers or {})


def from_validation(problems: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The same words for a field in a body, a query or a header as `perdure.messages` has; no value is repeated."""
    where = {"query": "parameter", "path": "parameter", "header": "header", "cookie": "cookie"}
    found: list[tuple[str, dict[str, Any]]] = []
    for each in problems:
        place, *path = each["loc"]
        if each["type"] == "json_invalid":
            return InvalidRequest(f"the body is not valid JSON: {(each.get('ctx') or {}).get('error', 'cut short')}")
        if place == "body" and not path:
            if each["type"] == "missing":
                return InvalidRequest("a body is missing: send a JSON object")
            return InvalidRequest("the body must be a JSON object, sent as application/json")
        found.append((where.get(str(place), "field"), {**each, "loc": tuple(path) or (place,)}))
    return told(found)
