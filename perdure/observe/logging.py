"""Logs: structlog and the standard library through one formatter, secrets masked, every line with an `action`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure.observe import tracing
from perdure.observe.masking import hide, hide_in_url, mask_secrets, mask_text
from perdure.settings import Settings

__all__ = ["mask_secrets", "mask_text", "quiet_by_default", "set_level", "setup_logging", "tell_where"]

_QUIET: Final = ("aiohttp.access", "asyncio", "httpcore", "httpx", "httpx2", "openai", "urllib3")

_where: Callable[[], Mapping[str, str]] = dict


def tell_where(where: Callable[[], Mapping[str, str]]) -> None:
    """Put what `where` gives (`run_id`, `step`, `agent`, `trace_id`) on each line that does not say it itself."""
    global _where  # noqa: PLW0603 -- one process has one engine
    _where = where


def setup_logging(settings: Settings, *, service: str) -> None:
    """Send all logs of this process to stderr, one line each: for people on a terminal, JSON otherwise.

    `settings.log_format` overrides the choice, `settings.log_level` is the level until `set_level`.
    """
    for url in (settings.nats_url, settings.database_url, settings.redis_url, settings.consul_http_addr):
        hide_in_url(url)
    for secret in (settings.consul_http_token, settings.gateway_secret, settings.audit_key, settings.nats_password):
        hide(secret)
    for pair in settings.encryption_keys.split(","):
        hide(pair.partition(":")[2])
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_where,
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
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[_action, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(settings)],
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


def _add_where(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in _where().items():
        event.setdefault(key, value)
    if "trace_id" not in event and (header := tracing.current()) is not None:
        event["trace_id"] = header.split("-")[1]
    return event


def _always(**fields: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in fields.items():
            event.setdefault(key, value)
        return event

    return add


def _action(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A line of a library, or of an author who gave none, has the logger's name as its action."""
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
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
