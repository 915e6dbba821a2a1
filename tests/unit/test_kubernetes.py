"""deploy/kubernetes, as far as it can be checked without a cluster: schemas, and that what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from perdure.settings import Settings
from tests.deployed import ROOT, is_a_program, registered_names, variables

FOLDER = ROOT / "deploy" / "kubernetes"
# The oldest and the newest release of Kubernetes that is maintained, as far as the schemas here go.
VERSIONS = ("1.31", "1.34")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(path.read_text()))


KUSTOMIZATION: dict[str, Any] = documents(FOLDER / "kustomization.yaml")[0]
ALL = [each for name in KUSTOMIZATION["resources"] for each in documents(FOLDER / name)]
OF_KUBERNETES = [each for each in ALL if each["kind"] != "ScaledObject"]
WORKLOADS = [each for each in ALL if each["kind"] in ("Deployment", "Job")]
DEPLOYMENTS = [each for each in WORKLOADS if each["kind"] == "Deployment"]
SETTINGS: dict[str, str] = next(each for each in ALL if each["kind"] == "ConfigMap")["data"]
SERVED = ("gateway", "console")
PORT = re.compile(r"^[a-z][a-z0-9-]{0,14}$")


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """In the order in which they start."""
    spec = document["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def container(document: dict[str, Any]) -> dict[str, Any]:
    (only,) = containers(document)
    return only


def is_agent(document: dict[str, Any]) -> bool:
    return container(document)["command"][:2] == ["perdure", "agent"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", OF_KUBERNETES, ids=name_of)
def test_each_object_fits_its_schema(document: dict[str, Any], version: str):
    kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_wrong():
    wrong = {**DEPLOYMENTS[0], "spec": {**DEPLOYMENTS[0]["spec"], "replicsa": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_kustomization_names_every_file_and_none_that_is_not_there():
    assert {*KUSTOMIZATION["resources"], "kustomization.yaml"} == {path.name for path in FOLDER.glob("*.yaml")}
    assert set(KUSTOMIZATION) == {"apiVersion", "kind", "namespace", "resources", "labels", "images"}
    (image,) = KUSTOMIZATION["images"]
    assert {one["image"] for each in WORKLOADS for one in containers(each)} == {f"{image['name']}:{image['newTag']}"}


def test_names_of_objects_of_one_kind_differ():
    names = [name_of(each) for each in ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("document", WORKLOADS, ids=name_of)
def test_a_container_runs_a_program_that_the_image_has(document: dict[str, Any]):
    assert all(is_a_program(one["command"]) for one in containers(document))


def test_the_tables_are_made_first_and_then_each_role_of_the_others_is_given_its_rights():
    (job,) = [each for each in WORKLOADS if each["kind"] == "Job"]
    first, second = (one["command"] for one in containers(job))
    assert first == ["perdure", "migrate"]
    agents = [name_of(each).partition("/")[2] for each in DEPLOYMENTS if is_agent(each)]
    assert second == ["perdure", "deploy", "postgres-roles", *agents]


def test_every_service_of_the_platform_is_deployed():
    from perdure.embedded.processes import SERVICES

    said = {tuple(container(each)["command"][1:]) for each in DEPLOYMENTS}
    assert {service.argv for service in SERVICES if "offline" not in service.argv[1]} <= said


@pytest.mark.parametrize("document", DEPLOYMENTS, ids=name_of)
def test_a_deployment_has_the_name_under_which_its_process_registers(document: dict[str, Any]):
    name = document["metadata"]["name"]
    assert registered_names()[name] == name


@pytest.mark.parametrize("document", WORKLOADS, ids=name_of)
def test_a_process_is_told_nothing_but_what_it_reads(document: dict[str, Any]):
    said = [each["name"] for one in containers(document) for each in one.get("env", ())]
    assert {*said, *SETTINGS} <= variables()


def test_the_settings_are_values_that_the_program_takes(monkeypatch: pytest.MonkeyPatch):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    for each in (one for document in WORKLOADS for one in containers(document)):
        for variable in each.get("env", ()):
            monkeypatch.setenv(variable["name"], variable["value"])
    assert Settings().consul_http_addr is None, "registering in Consul is for those who have one"


@pytest.mark.parametrize("document", WORKLOADS, ids=name_of)
def test_secrets_are_named_and_never_written_here(document: dict[str, Any]):
    name = document["metadata"]["name"].removeprefix("perdure-")
    for one in containers(document):
        assert {"secretRef": {"name": f"perdure-{name}"}} in one["envFrom"], "one for each: each has users of its own"
        assert {"configMapRef": {"name": "perdure-settings"}} in one["envFrom"]
        assert not [each for each in one.get("env", ()) if "://" in each["value"] and "@" in each["value"]]
    assert not [each for each in ALL if each["kind"] == "Secret"]
    assert not re.search(r"(?i)password|secret_key|token: ", "".join(SETTINGS.values()))


@pytest.mark.parametrize("document", DEPLOYMENTS, ids=name_of)
def test_probes_ask_at_ports_and_paths_that_the_process_serves(document: dict[str, Any]):
    one = container(document)
    ports = {each["name"]: each["containerPort"] for each in one["ports"]}
    assert all(PORT.match(name) for name in ports)
    assert ports["metrics"] == int(SETTINGS["PERDURE_METRICS_PORT"])
    assert SETTINGS["PERDURE_METRICS_HOST"] == "0.0.0.0"
    assert one["startupProbe"]["httpGet"] == one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert one["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    served = (ROOT / "perdure" / "observe" / "exporter.py").read_text()
    assert all(f'"{path}"' in served for path in ("/readyz", "/healthz"))
    assert document["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])


@pytest.mark.parametrize("name", SERVED)
def test_who_serves_http_listens_where_its_service_sends(name: str):
    (served,) = [each for each in DEPLOYMENTS if each["metadata"]["name"] == name]
    env = {each["name"]: each["value"] for each in container(served)["env"]}
    assert env[f"PERDURE_{name.upper()}_HOST"] == "0.0.0.0"
    assert {"name": "http", "containerPort": int(env[f"PERDURE_{name.upper()}_PORT"])} in container(served)["ports"]
    (service,) = [each for each in ALL if each["kind"] == "Service" and each["metadata"]["name"] == name]
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert service["spec"]["selector"] == served["spec"]["selector"]["matchLabels"]
    assert env.get("PERDURE_GATEWAY_URL", "http://gateway") == "http://gateway"


@pytest.mark.parametrize("document", DEPLOYMENTS, ids=name_of)
def test_a_stop_is_a_drain(document: dict[str, Any]):
    before = container(document).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    assert before[0] == "sleep"
    grace = document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= float(before[1]) + float(SETTINGS["PERDURE_DRAIN_TIMEOUT"]) + 10


@pytest.mark.parametrize("document", DEPLOYMENTS, ids=name_of)
def test_a_deployment_loses_at_most_one_pod_to_whoever_empties_a_node(document: dict[str, Any]):
    labels = document["spec"]["selector"]["matchLabels"]
    budget = [
        each
        for each in ALL
        if each["kind"] == "PodDisruptionBudget" and each["spec"]["selector"]["matchLabels"] == labels
    ]
    assert [each["spec"]["maxUnavailable"] for each in budget] == [1]
    assert labels.items() <= document["spec"]["template"]["metadata"]["labels"].items()
    scaled = [
        each
        for each in ALL
        if each["kind"] == "ScaledObject" and each["metadata"]["name"] == document["metadata"]["name"]
    ]
    least = scaled[0]["spec"]["minReplicaCount"] if scaled else document["spec"]["replicas"]
    assert least >= 2, "one may be lost"


@pytest.mark.parametrize("document", WORKLOADS, ids=name_of)
def test_a_pod_is_an_ordinary_user_that_writes_nothing_of_its_image(document: dict[str, Any]):
    pod = document["spec"]["template"]["spec"]
    user = int(re.findall(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == user
    assert pod["automountServiceAccountToken"] is False
    for one in containers(document):
        security = one["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        assert one["resources"]["limits"]["memory"]


def test_an_agent_is_scaled_by_the_wake_ups_that_wait_for_it():
    """KEDA's own schema is not among those of Kubernetes: the fields that are used are checked here."""
    from perdure import subjects

    scaled = [each for each in ALL if each["kind"] == "ScaledObject"]
    agents = [each for each in DEPLOYMENTS if is_agent(each)]
    assert {each["metadata"]["name"] for each in scaled} == {each["metadata"]["name"] for each in agents}
    for each in scaled:
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        assert set(each["spec"]) == {
            *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "cooldownPeriod", "triggers")
        }
        name = each["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in next(one for one in agents if one["metadata"]["name"] == name)["spec"], (
            "KEDA sets them"
        )
        (trigger,) = each["spec"]["triggers"]
        assert trigger["type"] == "nats-jetstream"
        said = trigger["metadata"]
        assert {"natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold"} <= set(said)
        assert said["stream"] == subjects.STREAM_WORK
        assert said["consumer"] == registered_names()[name], "the consumer of an agent has its name"
        assert all(isinstance(value, str) for value in said.values()), "KEDA takes text alone"


def test_nothing_is_let_in_or_out_but_what_is_named():
    policies = {each["metadata"]["name"]: each["spec"] for each in ALL if each["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    let_in = {port["port"] for spec in policies.values() for rule in spec.get("ingress", ()) for port in rule["ports"]}
    assert let_in == {8000, 8080, int(SETTINGS["PERDURE_METRICS_PORT"])}
    assert all(rule.get("ports") for spec in policies.values() for rule in spec.get("egress", ())), (
        "no port is open to all"
    )
