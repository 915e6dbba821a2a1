"""Traces: off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Nothing here loads OpenTelemetry until it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

from perdure.errors import SetupError

if TYPE_CHECKING:
    from perdure.observe.otel import Traces
    from perdure.settings import Settings

FLUSH_SECONDS: Final = 3.0  # for what waits to be sent when a process ends
HEADER: Final = "traceparent"
_MODULE: Final = "perdure.observe.otel"
_OTHER_PROTOCOLS: Final = ("grpc", "http/json")


def wanted(settings: Settings) -> bool:
    """Whether this process is to send traces. Raises `SetupError` for a protocol that it does not speak."""
    endpoint = settings.otel_exporter_otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        said = os.environ.get(variable, "").strip().lower()
        if said in _OTHER_PROTOCOLS:
            raise SetupError(
                f"{variable} is {said}, and traces are sent as http/protobuf: set it to that, and the port to the one "
                "for OTLP over HTTP (usually 4318)"
            )
    return True


def load(settings: Settings, *, service: str, instance: str, version: str) -> Traces:
    """What sends the traces of one service. Blocks: call it in a thread.

    Raises `SetupError` naming the extra when OpenTelemetry is not installed.
    """
    try:
        otel = import_module(_MODULE)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SetupError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed: "
            "pip install 'perdure[telemetry]', or take the variable away"
        ) from error
    made: Traces = otel.Traces(
        settings.otel_exporter_otlp_endpoint, service=service, instance=instance, version=version
    )
    return made


def current() -> str | None:
    """The W3C `traceparent` of the span that is open here, to be stored or sent; None without one."""
    otel = sys.modules.get(_MODULE)
    return None if otel is None else otel.current()


def carried() -> dict[str, str] | None:
    """The same as headers of a message."""
    said = current()
    return None if said is None else {HEADER: said}


def told(headers: Mapping[str, str] | None) -> str | None:
    """The `traceparent` that came with a message, if it is one."""
    if not headers:
        return None
    return usable(headers.get(HEADER) or headers.get("Traceparent"))


def usable(said: str | None) -> str | None:
    """`said` if it is a `traceparent` of version 00 as the specification has it: what is stored is short and plain."""
    return said if said is not None and _fits(said) else None


def _fits(said: str) -> bool:
    parts = said.split("-")
    lengths = [2, 32, 16, 2]
    return (
        [len(part) for part in parts] == lengths
        and parts[0] == "00"
        and all(set(part) <= set("0123456789abcdef") for part in parts)
        and parts[1].strip("0") != ""
        and parts[2].strip("0") != ""
    )
