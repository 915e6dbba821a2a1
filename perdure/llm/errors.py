"""Which failures of a model are worth another try, and what to tell the person who has to repair the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from perdure.errors import PermanentError, RetryableError
from perdure.llm.types import ModelSettings

if TYPE_CHECKING:
    import openai


class BusyError(RetryableError):
    """The endpoint works and asks to be left alone for a moment: no sign of its ill health."""


_KEY = re.compile(r"\b(sk|key|Bearer)[-_ ][A-Za-z0-9_*.\-]{6,}")
_BUSY = frozenset({409, 425, 429})
_MAX_SAID = 300

_ADVICE: dict[int, str] = {
    400: "It calls the request malformed: check llm_model, llm_temperature, llm_max_tokens and the tools' schemas.",
    401: "Set llm_api_key to a secret reference of a valid key (for example secret://env/OPENAI_API_KEY), "
    "or OPENAI_API_KEY in the agent's environment.",
    403: "The key may not use this model: choose another llm_model, or another llm_api_key.",
    404: "It does not know the model or the path: check llm_model and llm_base_url (which usually ends in /v1).",
    413: "The request is too large: lower history_max_messages, or return less from the tools.",
    422: "It cannot work on the request: check llm_model, llm_temperature, llm_max_tokens and the tools' schemas.",
}
_CODES: dict[str, str] = {
    "insufficient_quota": "The account's quota is used up: raise it, or set another llm_api_key or llm_provider.",
    "context_length_exceeded": "The conversation is longer than the model reads: lower history_max_messages.",
}


def place(settings: ModelSettings) -> str:
    """`model 'x' at https://host/v1`, without user info or query, which may hold secrets."""
    parts = urlsplit(settings.base_url)
    host = parts.netloc.rpartition("@")[2]
    return f"model {settings.model!r} at {urlunsplit((parts.scheme, host, parts.path.rstrip('/'), '', ''))}"


def without_key(text: str, settings: ModelSettings) -> str:
    """`text` with nothing in it that is, or looks like, a key; providers quote keys in their errors."""
    if len(settings.api_key) >= 4:
        text = text.replace(settings.api_key, "[key]")
    text = _KEY.sub("[key]", text)
    return text if len(text) <= _MAX_SAID else text[:_MAX_SAID] + "…"


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds or a date); None when nothing usable is said."""
    try:
        if (millis := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(millis) / 1000)
        said = headers.get("retry-after")
        if said is None:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", said.strip()):
            return float(said)
        return max(0.0, (parsedate_to_datetime(said) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def status_error(
    status: int,
    said: str,
    settings: ModelSettings,
    *,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> PermanentError | RetryableError:
    """The error for an HTTP status: 408, 409, 425, 429 and 5xx are retryable, every other is permanent."""
    text = f"{place(settings)} answered {status}: {without_key(said, settings).rstrip('.')}."
    if code in _CODES:
        return PermanentError(f"{text} {_CODES[code]}")
    if status in _BUSY:
        return BusyError(text, retry_after=retry_after(headers or {}))
    if status == 408 or status >= 500:
        return RetryableError(text, retry_after=retry_after(headers or {}))
    return PermanentError(f"{text} {_ADVICE.get(status, _ADVICE[400])}")


def nonsense(settings: ModelSettings, why: str) -> RetryableError:
    """The error for an answer that is no chat completion; another try often mends it."""
    return RetryableError(
        f"{place(settings)} answered something that is no usable chat completion: {without_key(why, settings)}. "
        "If it goes on, check that llm_base_url is an OpenAI-compatible endpoint."
    )


def model_error(error: openai.APIError, settings: ModelSettings) -> PermanentError | RetryableError:
    """The error class and the advice for an error of the `openai` client."""
    import openai  # noqa: PLC0415  (heavy: loads with the first model call)

    if isinstance(error, openai.APIStatusError):
        said = error.body.get("message") if isinstance(error.body, dict) else None
        text = said if isinstance(said, str) and said else error.message
        return status_error(error.status_code, text, settings, code=error.code, headers=error.response.headers)
    if isinstance(error, openai.APITimeoutError):
        return RetryableError(f"{place(settings)} was silent for {settings.timeout:g} s.")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return RetryableError(
            f"{place(settings)} cannot be reached: {without_key(str(cause) or type(cause).__name__, settings)}. "
            "Check llm_base_url (or OPENAI_BASE_URL) and the network."
        )
    if error.code in _CODES:
        return PermanentError(f"{place(settings)} said: {without_key(error.message, settings)} {_CODES[error.code]}")
    return RetryableError(f"{place(settings)} broke off: {without_key(error.message, settings)}")
