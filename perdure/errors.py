"""Every exception that Perdure raises, and the code each one carries over the wire.

PerdureError
├── ApiError                    an answer with a code: the same on NATS, HTTP and the command line
│   ├── InvalidRequest          invalid_request  400
│   ├── Unauthorized            unauthorized     401
│   ├── Forbidden               forbidden        403
│   ├── NotFound                not_found        404
│   ├── Conflict                conflict         409
│   ├── TooLarge                too_large        413
│   ├── RunFailed               run_failed       422   (run_id, status, error)
│   ├── RateLimited             rate_limited     429   (retry_after)
│   ├── InternalError           internal         500
│   └── Unavailable             unavailable      503
├── StepFailed                  a step used up its attempts (name, attempts, cause)
├── PermanentError              raised by a step: do not try again
├── RetryableError              raised by a step: try again, perhaps after `retry_after` seconds
├── WorkflowMisuse              the workflow code breaks a rule of the engine (ctx in a raw asyncio task, …)
└── SetupError                  the machine or the environment is not ready; the text says what to do

ControlFlow (BaseException)     the engine speaking to a workflow; never an error, never to be caught
├── RunSuspended                the run leaves memory; the work goes on elsewhere or later
└── RunContinued                the run begins anew with another task (`ctx.continue_as_new`)
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar


class PerdureError(Exception):
    """The root of every error that Perdure raises on purpose."""


class ApiError(PerdureError):
    """An error with a `code`, the same on every door.

    `code` is one of the contract's codes, `http_status` the status it has over HTTP, `details` extra JSON fields.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details


class InvalidRequest(ApiError):
    """The request is malformed; the message names the field and the fix."""

    code = "invalid_request"
    http_status = 400


class Unauthorized(ApiError):
    """No credentials, or none that count."""

    code = "unauthorized"
    http_status = 401


class Forbidden(ApiError):
    """The caller may not do this."""

    code = "forbidden"
    http_status = 403


class NotFound(ApiError):
    """There is no such agent, run, session or revision."""

    code = "not_found"
    http_status = 404


class Conflict(ApiError):
    """The state has moved on: another task under the same run id, a second decision, an older revision."""

    code = "conflict"
    http_status = 409


class TooLarge(ApiError):
    """A payload over the limit; the message says which limit."""

    code = "too_large"
    http_status = 413


class RunFailed(ApiError):
    """A run ended without an output.

    `run_id` is the run, `status` its last state (`failed`, `cancelled`, `dead`), `error` the run's own error as a
    mapping with `type` and `message`.
    """

    code = "run_failed"
    http_status = 422

    def __init__(self, run_id: str, status: str, error: dict[str, Any] | None = None) -> None:
        said = (error or {}).get("message", "no reason was recorded")
        super().__init__(f"run {run_id} ended {status}: {said}", run_id=run_id)
        self.run_id = run_id
        self.status = status
        self.error = error or {}


class RateLimited(ApiError):
    """Too much for now; `retry_after` seconds later it may go through."""

    code = "rate_limited"
    http_status = 429

    def __init__(self, message: str, *, retry_after: float = 1.0, **details: Any) -> None:
        super().__init__(message, retry_after=retry_after, **details)
        self.retry_after = retry_after


class InternalError(ApiError):
    """A fault of ours; the details are in the log under the same `error_id`."""


class Unavailable(ApiError):
    """A part that the request needs is not there right now; nothing was lost, ask again."""

    code = "unavailable"
    http_status = 503


API_ERRORS: dict[str, type[ApiError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        RateLimited,
        InternalError,
        Unavailable,
    )
}


def api_error(code: str, message: str, **details: Any) -> ApiError:
    """Build the exception that a wire error stands for; an unknown code becomes `InternalError`."""
    if code == RunFailed.code:
        return RunFailed(
            details.get("run_id", "?"), details.get("status", "failed"), details.get("cause", {"message": message})
        )
    kind = API_ERRORS.get(code, InternalError)
    return kind(message, **details)


class StepFailed(PerdureError):
    """A step used up its attempts, now or on replay.

    `name` is the step's name, `attempts` how many were made, `cause` the last error as a mapping with `type` and
    `message` (the exception itself does not outlive its process).
    """

    def __init__(self, name: str, attempts: int, cause: dict[str, Any]) -> None:
        super().__init__(f"step {name!r} failed after {attempts} attempt(s): {cause.get('message', '')}")
        self.name = name
        self.attempts = attempts
        self.cause = cause


class PermanentError(PerdureError):
    """Raised inside a step: trying again cannot help."""


class RetryableError(PerdureError):
    """Raised inside a step: try again, not before `retry_after` (seconds or a timedelta) when that is given.

    Raises `TypeError` or `ValueError` for a `retry_after` that is no duration, like the text of an HTTP header.
    """

    def __init__(self, message: str, *, retry_after: float | timedelta | None = None) -> None:
        super().__init__(message)
        if isinstance(retry_after, timedelta):
            retry_after = retry_after.total_seconds()
        if isinstance(retry_after, bool) or not isinstance(retry_after, int | float | None):
            raise TypeError(f"retry_after must be seconds or a timedelta, not {type(retry_after).__name__}")
        if retry_after is not None and not retry_after < 10**10:  # 317 years; NaN is not less, either
            raise ValueError(f"retry_after must be a number of seconds, not {retry_after}")
        self.retry_after = retry_after


class WorkflowMisuse(PerdureError):
    """Workflow code broke a rule of the engine; the message names the rule and the way round."""


class SetupError(PerdureError):
    """Something outside the code is not ready (a server, a port, a folder); the message says what to do."""


class ControlFlow(BaseException):
    """The engine speaking to a workflow. Outside `Exception`, so that `except Exception` never swallows it."""


class RunSuspended(ControlFlow):
    """The run leaves memory here: it waits, it was fenced, or its process drains."""


class RunContinued(ControlFlow):
    """The run begins anew with `task` under the same run id."""

    def __init__(self, task: Any) -> None:
        super().__init__("continue as new")
        self.task = task
