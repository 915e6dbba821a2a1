"""The references list what there is: the environment, the keys of agents, the errors, the dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from pydantic_core import PydanticUndefined

from perdure.agent.settings import AgentSettings
from perdure.client.types import TERMINAL_EVENTS
from perdure.config.keys import DurableAgentSettings
from perdure.engine.points import AGENT, RETENTION, SCHEDULER
from perdure.errors import API_ERRORS, RunFailed
from perdure.llm.providers import PROVIDERS
from perdure.observe.catalogue import CATALOGUE
from perdure.settings import Settings
from tests.docs import IDS, PAGES, ROOT, section

REFERENCE = ROOT / "docs" / "reference"
OTHERS = {
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "PERDURE_OFFLINE_MODEL_URL", "PERDURE_CONSOLE_URL"),
    *("OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_HEADERS"),
    *("CONSUL_HTTP_SSL", "CONSUL_HTTP_SSL_VERIFY", "CONSUL_CACERT", "CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY"),
    *("PERDURE_BENCH_KILLS", "PERDURE_BENCH_HANGS"),  # of benchmarks/engine/recovery.py
    *("PERDURE_BENCH_WAITING", "PERDURE_BENCH_FINISHED"),  # of benchmarks/engine/many.py
    *(provider.key_variable for provider in PROVIDERS.values() if provider.key_variable),
}
COMPOSE = {
    "POSTGRES_PASSWORD",
    "GATEWAY_PORT",
    "CONSOLE_PORT",
    "NATS_PORT",
    "POSTGRES_PORT",
    "REDIS_PORT",
    "CONSUL_PORT",
    "PROMETHEUS_PORT",
    "GRAFANA_PORT",
    "JAEGER_PORT",
    "NATS_CLIENT_URL",  # said by `credentials show`
    *(f"POSTGRES_PASSWORD_{user}" for user in ("CONFIG_MANAGER", "SCHEDULER", "GATEWAY", "OPERATOR")),
}
FIRST = re.compile(r"^(NATS|DATABASE|REDIS|CONSUL|OPENAI|PERDURE|POSTGRES|ANTHROPIC|OTEL)_[A-Z_]+$")


def variable(field: str) -> str:
    """The environment variable of a settings field."""
    alias = Settings.model_fields[field].validation_alias
    return alias.choices[0] if alias is not None else f"PERDURE_{field.upper()}"


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without heads and backticks."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_the_reference_of_the_environment_lists_every_setting_with_its_default():
    listed = {row[0]: row[1] for row in rows((REFERENCE / "settings.md").read_text()) if row[0] not in OTHERS}
    assert set(listed) == {variable(field) for field in Settings.model_fields}
    for field, said in Settings.model_fields.items():
        default = said.get_default()
        if default not in (None, PydanticUndefined):
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert listed[variable(field)] == (shown.lower() if isinstance(default, bool) else shown)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_variable_that_is_named_is_read_by_something(page: Path):
    known = {variable(field) for field in Settings.model_fields} | OTHERS | COMPOSE
    named = {word for word in re.findall(r"\b[A-Z]+_[A-Z_]+\b", page.read_text()) if FIRST.match(word)}
    assert {word for word in named - known if not word.endswith("_PASSWORD_")} == set()  # with a user's name


def test_the_reference_of_configuration_lists_every_key_of_a_durable_agent():
    text, _, more = section(REFERENCE / "configuration.md", "Keys that every DurableAgent understands").partition("###")
    named = {key for row in rows(more) for key in re.findall(r"\w+", row[0])}
    assert named == set(AgentSettings.model_fields) - set(DurableAgentSettings.model_fields)
    assert [row[0] for row in rows(text)] == list(DurableAgentSettings.model_fields)
    provider = next(row[1] for row in rows(text) if row[0] == "llm_provider")
    assert set(re.findall(r"[a-z]+", provider)) >= {*PROVIDERS, "offline"}


def test_the_reference_of_errors_lists_every_code():
    listed = {(row[0], int(row[1]), row[2]) for row in rows(section(REFERENCE / "errors.md", "On the wire"))}
    kinds = [*API_ERRORS.values(), RunFailed]
    assert listed == {(kind.code, kind.http_status, kind.__name__) for kind in kinds}


def test_the_reference_of_events_lists_every_end():
    text = (REFERENCE / "events.md").read_text()
    assert all(f"`{kind}`" in text for kind in TERMINAL_EVENTS)


def test_the_points_at_which_a_crash_may_strike_are_listed():
    listed = rows((REFERENCE / "crash-points.md").read_text())
    assert [tuple(row) for row in listed] == [*AGENT.items(), *SCHEDULER.items(), *RETENTION.items()]


def test_the_reference_of_metrics_lists_every_one_with_its_labels():
    listed = [
        (row[0], row[1], row[2].replace("`", "").split(), row[3])
        for row in rows((REFERENCE / "metrics.md").read_text())
    ]
    assert listed == [(each.name, each.kind, [*each.labels], each.help) for each in CATALOGUE.values()]


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {Requirement(each).name for each in project["dependencies"]}
    assert {row[0] for row in rows(section(ROOT / "ARCHITECTURE.md", "Dependencies"))} == needed
