"""Logs: structlog and the standard library through one formatter, secrets masked, every line with an `action`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure.settings import Settings

MASK: Final = "***"
REFERENCE: Final = "secret://"
DEEPEST: Final = 6

# `max_tokens` and `tokenizer` are no secrets: the word must stand alone between separators.
_SECRET_KEY: Final = re.compile(
    r"(?:^|[_\-. ])(?:secret|password|passwd|token|api_?key|authorization|credentials?|private_?key)(?:$|[_\-. ])",
    re.IGNORECASE,
)
_IN_TEXT: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@", re.IGNORECASE), rf"\1:{MASK}@"),
    (re.compile(r"(\b(?:nats|tls)://)[^\s:/@]+@", re.IGNORECASE), rf"\1{MASK}@"),  # a user alone is a token there
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{12,}"), f"sk-{MASK}"),
)
_QUIET: Final = ("aiohttp.access", "asyncio", "httpcore", "httpx", "httpx2", "openai")


def setup_logging(settings: Settings, *, service: str) -> None:
    """Send all logs of this process to stderr, one line each: for people on a terminal, JSON otherwise.

    `settings.log_format` overrides the choice, `settings.log_level` is the level until `set_level`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _always(service=service, instance=settings.instance_id),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _foreign_action],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    set_level(settings.log_level)


def set_level(level: str) -> None:
    """Change the level of this process now: `debug`, `info`, `warning` or `error`. `ValueError` for another word."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None or level.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(f"log level {level!r} is unknown: use debug, info, warning or error")
    logging.getLogger().setLevel(number)


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The processor that keeps secrets out: values under a secret's key, and passwords inside texts and addresses."""
    for key, value in event.items():
        event[key] = _masked(key, value, 0)
    return event


def mask_text(text: str) -> str:
    """`text` without the passwords of addresses, bearer tokens and API keys."""
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def _masked(key: str, value: Any, depth: int) -> Any:
    if _SECRET_KEY.search(key):
        reference = isinstance(value, str) and value.startswith(REFERENCE)
        return value if reference or value is None or isinstance(value, bool) else MASK
    if isinstance(value, str):
        return mask_text(value)
    if depth >= DEEPEST:
        return mask_text(repr(value))
    if isinstance(value, Mapping):
        return {str(name): _masked(str(name), each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked("", each, depth + 1) for each in value]
    if value is None or isinstance(value, int | float):
        return value
    return mask_text(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _always(**fields: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in fields.items():
            event.setdefault(key, value)
        return event

    return add


def _foreign_action(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A line of a library has the library's name as its action."""
    record = event.get("_record")
    event.setdefault("action", f"log.{record.name}" if record else "log")
    return event


def _rendering(settings: Settings) -> list[Processor]:
    wanted = settings.log_format
    console = wanted == "console" or (wanted == "auto" and sys.stderr.isatty())
    if console:
        # The traceback becomes text before masking, so that no address in it escapes.
        return [
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ]
    return [
        structlog.processors.format_exc_info,
        mask_secrets,
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _json(value: Any, default: Callable[[Any], Any] | None = None, **_: Any) -> str:
    return orjson.dumps(value, default=default or str).decode()


def quiet_by_default() -> None:
    """Warnings and errors alone, on stderr: for programs that use Perdure inside and have set up no logs of their own.

    The root logger of the standard library is the program's, and stays as it is.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            mask_secrets,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
