"""docker-compose.yml and the Dockerfile, as far as they can be checked where no container engine runs."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from perdure.embedded.processes import SERVICES
from perdure.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, part in PARTS.items() if part["image"].startswith("perdure:")]
CONDITIONS = {"service_healthy", "service_completed_successfully"}


def test_every_part_of_the_platform_is_there():
    assert set(PARTS) == {
        *("nats", "postgres", "redis", "consul", "migrations", "offline-model"),
        *("config-manager", "scheduler", "gateway", "console", "assistant", "activation"),
    }


@pytest.mark.parametrize("name", PARTS)
def test_an_image_is_pinned_to_a_whole_version(name: str):
    assert re.fullmatch(r"[a-z./-]+:\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?", PARTS[name]["image"])


def test_our_image_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {PARTS[name]["image"] for name in OURS} == {f"perdure:{version}"}


def test_the_bases_of_the_image_are_pinned_and_the_same():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim", bases[0])


@pytest.mark.parametrize("name", PARTS)
def test_a_part_waits_for_parts_that_can_become_what_it_waits_for(name: str):
    for other, wanted in PARTS[name].get("depends_on", {}).items():
        assert wanted["condition"] in CONDITIONS
        if wanted["condition"] == "service_healthy":
            assert PARTS[other]["healthcheck"]["test"]
        else:
            assert PARTS[other]["restart"] == "no"


def test_nothing_waits_in_a_circle():
    left = {name: set(part.get("depends_on", ())) for name, part in PARTS.items()}
    while free := [name for name, waits in left.items() if not waits & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def test_services_start_after_the_migrations_and_agents_after_the_services():
    for name in ("config-manager", "scheduler", "gateway"):
        assert PARTS[name]["depends_on"]["migrations"]["condition"] == "service_completed_successfully"
    for name in ("assistant", "activation"):
        assert {"config-manager", "scheduler"} <= set(PARTS[name]["depends_on"])


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"migrations"}))
def test_a_part_that_stays_tells_its_health_and_comes_back_after_a_crash(name: str):
    assert PARTS[name]["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert PARTS[name]["restart"] == "unless-stopped"


def test_the_commands_are_programs_that_the_image_has():
    for name in OURS:
        program, *arguments = PARTS[name]["command"]
        if program == "python":
            assert arguments[0] == "-m"
            folder = ROOT / arguments[1].replace(".", "/")
            assert (folder / "__main__.py").is_file() or folder.with_suffix(".py").is_file()
        else:
            assert program == "perdure"
            assert arguments == ["migrate"] or (arguments[0] == "agent" and (ROOT / arguments[1]).is_file())
    said = {tuple(PARTS[name]["command"][1:]) for name in OURS}
    assert {service.argv for service in SERVICES} <= said, "a service of `perdure up` is missing here"


def test_a_health_check_asks_for_the_name_under_which_the_process_registers():
    from config_manager.service import ConfigManager
    from perdure.runner.load import load_agent
    from services.gateway.service import Gateway
    from services.scheduler.service import Scheduler

    registered = {"config-manager": ConfigManager.service_name, "scheduler": Scheduler.service_name}
    registered["gateway"] = Gateway.service_name
    registered |= {name: load_agent(str(ROOT / "agents" / f"{name}.py")).name for name in ("assistant", "activation")}
    for name, service in registered.items():
        assert PARTS[name]["healthcheck"]["test"][1:] == ["python", "deploy/healthcheck.py", service]


def test_our_processes_are_told_nothing_but_what_they_read():
    known = {f"PERDURE_{name.upper()}" for name in Settings.model_fields}
    known |= {"NATS_URL", "DATABASE_URL", "REDIS_URL", "CONSUL_HTTP_ADDR", "OPENAI_API_KEY", "OPENAI_BASE_URL"}
    known |= {"PERDURE_OFFLINE_MODEL_URL"}
    for name in OURS:
        assert set(PARTS[name]["environment"]) <= known
        assert PARTS[name]["environment"]["CONSUL_HTTP_ADDR"] == "http://consul:8500"


def test_nothing_of_the_host_is_mounted_or_opened_to_the_network():
    for part in PARTS.values():
        for volume in part.get("volumes", ()):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        for port in part.get("ports", ()):
            assert port.startswith("127.0.0.1:")
        for config in part.get("configs", ()):
            assert (ROOT / COMPOSE["configs"][config["source"]]["file"]).is_file()


def test_a_container_is_given_time_to_drain():
    assert (
        int(PARTS["assistant"]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["drain_timeout"].default
    )


def test_variables_of_the_example_are_those_of_the_compose_file():
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)) == named


def test_the_image_runs_as_an_ordinary_user():
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    assert "useradd --uid 10001" in last


def test_the_dockerfile_copies_what_is_there():
    for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
    for source in re.findall(r"^COPY --from=build /app/(\S+)", DOCKERFILE, re.MULTILINE):
        assert (ROOT / source).exists()
    carried = (ROOT / ".dockerignore").read_text().split()
    assert not {"migrations", "services", "agents", "config_manager", "perdure", "LICENSE", "README.md"} & set(carried)


def test_the_dockerfile_takes_the_whole_build_tool_from_the_lock():
    listed = re.search(r"keep = /\^\(([a-z|-]+)\)==/", DOCKERFILE)
    assert listed
    needed, waiting = set(), ["hatchling"]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        found = [Requirement(each) for each in requires(name) or ()]
        waiting += [each.name for each in found if each.marker is None and each.name not in needed]
    assert set(listed[1].split("|")) == needed
    lock = (ROOT / "requirements-dev.lock").read_text()
    assert all(re.search(rf"^{re.escape(name)}==", lock, re.MULTILINE) for name in needed)
