from __future__ import annotations

import subprocess
import sys

import pytest

from perdure.errors import SetupError
from perdure.observe import tracing
from perdure.settings import Settings

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_say_whether_traces_are_sent(monkeypatch, said, wanted):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert tracing.wanted(Settings()) is wanted


def test_a_protocol_that_is_not_spoken_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SetupError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is grpc.*http/protobuf.*4318"):
        tracing.wanted(Settings(otel_exporter_otlp_endpoint="http://c:4317"))


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.delitem(sys.modules, "perdure.observe.otel", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SetupError, match=r"pip install 'perdure\[telemetry\]'"):
        tracing.load(Settings(otel_exporter_otlp_endpoint="http://c"), service="s", instance="i", version="1")


def test_a_process_without_an_endpoint_loads_neither_what_sends_traces_nor_the_client_of_prometheus():
    """redis-py loads the metrics of OpenTelemetry where they are installed; nothing of ours loads any of it."""
    code = "import services.scheduler.service, config_manager.service, sys; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    wanted = ("opentelemetry.exporter", "opentelemetry.sdk.trace", "prometheus_client", "perdure.observe.otel")
    assert not [name for name in said if name.startswith(wanted)]


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "",
        HEADER.upper(),
        HEADER + "-00",
        "ff" + HEADER[2:],
        HEADER.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        HEADER.replace("00f067aa0ba902b7", "0" * 16),
        HEADER[:-1],
        "x" * 100_000,
    ],
)
def test_only_a_whole_traceparent_is_taken(bad):
    assert tracing.told({"traceparent": bad} if bad is not None else {}) is None


def test_a_traceparent_is_taken():
    assert tracing.told({"traceparent": HEADER}) == HEADER
