"""The form of requests, replies and errors on NATS, for both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client

from perdure.errors import ApiError, InternalError, RunFailed, TooLarge, Unavailable, api_error
from perdure.observe import tracing
from perdure.store.actor import actor

ERROR_HEADER: Final = "Nats-Service-Error"
BY_HEADER: Final = "Perdure-By"  # who asks, for the audit log
CODE_HEADER: Final = "Nats-Service-Error-Code"


def error_reply(error: ApiError) -> tuple[dict[str, Any], dict[str, str]]:
    """The body and the headers by which an error travels; `raise_for_error` is the way back."""
    details = dict(error.details)
    if isinstance(error, RunFailed):
        details |= {"status": error.status, "cause": error.error}
    body = {"status": "error", "error": {**details, "code": error.code, "message": error.message}}
    # A header is one short line of ASCII; the body has the whole text.
    text = " ".join(error.message.split())[:200].encode("ascii", "replace").decode()
    return body, {ERROR_HEADER: text or error.code, CODE_HEADER: str(error.http_status)}


def raise_for_error(reply: dict[str, Any]) -> dict[str, Any]:
    """`reply` itself, unless it is an error reply: then the exception that it stands for is raised."""
    error = reply.get("error")
    if reply.get("status") != "error" or not isinstance(error, dict):
        return reply
    details = {key: value for key, value in error.items() if key not in ("code", "message")}
    raise api_error(str(error.get("code")), str(error.get("message", "no message")), **details)


async def request(
    nc: Client, subject: str, payload: Mapping[str, Any] | bytes, *, timeout: float = 5.0
) -> dict[str, Any]:
    """Ask `subject` and return the reply, waiting at most `timeout` seconds. Bytes are sent as they are.

    Raises the `ApiError` that the other side sent, `Unavailable` when nobody listens, nobody answers in time or the
    connection is down, `TooLarge` when the payload is over the server's limit.
    """
    data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    try:
        headers = {**(tracing.carried() or {}), **_said_by()}
        message = await nc.request(subject, data, timeout=timeout, headers=headers or None)
    except nats_errors.NoRespondersError:
        raise Unavailable(f"nobody answers {subject}: is the service up? See `perdure status`.") from None
    except nats_errors.MaxPayloadError:
        raise TooLarge(f"{len(data)} bytes for {subject} are over the limit of {nc.max_payload}") from None
    except TimeoutError:
        raise Unavailable(f"no answer on {subject} within {timeout:g} s; it may still have been done") from None
    except nats_errors.Error as error:
        raise Unavailable(f"NATS cannot be used for {subject}: {str(error) or type(error).__name__}") from error
    return raise_for_error(_object(message.data, subject))


def _said_by() -> dict[str, str]:
    """Who asks, where that is known: one line of ASCII, at most 200 characters."""
    by = " ".join(actor.get().split())[:200].encode("ascii", "replace").decode()
    return {BY_HEADER: by} if by else {}


def _object(data: bytes, subject: str) -> dict[str, Any]:
    try:
        reply = orjson.loads(data)
    except orjson.JSONDecodeError:
        reply = None
    if not isinstance(reply, dict):
        raise InternalError(f"the reply on {subject} is not a JSON object")
    return reply
