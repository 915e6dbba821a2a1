"""The rules for alerts name what the program tells, and each alert has its page."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from tests.alerts.faults import WAVES
from tests.alerts.rules import shorten
from tests.docs import ROOT
from tests.promql import OF_THE_LIBRARY, TARGET, TOLD, wrong

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "rules" / "perdure.yml"
CASES = FOLDER / "tests" / "perdure.yml"
RUNBOOKS = ROOT / "docs" / "runbooks"
PROMTOOL = shutil.which("promtool")


def rules():
    return YAML(typ="safe").load(RULES)["groups"][0]["rules"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_metric_and_label_of_a_rule_is_told_by_the_program(rule):
    assert list(wrong(rule["expr"])) == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_has_a_severity_a_summary_and_a_runbook(rule):
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    page = ROOT / rule["annotations"]["runbook"]
    text = page.read_text()
    assert text.startswith(f"# {rule['alert']}\n")
    assert "## What to do" in text
    assert f"[{rule['alert']}]({page.name})" in (RUNBOOKS / "README.md").read_text()


def test_no_runbook_is_left_without_its_alert():
    named = {rule["annotations"]["runbook"].rpartition("/")[2] for rule in rules()}
    assert {page.name for page in RUNBOOKS.glob("*.md")} == {*named, "README.md"}


def cases():
    return YAML(typ="safe").load(CASES)["tests"]


def test_each_alert_has_a_case_in_which_it_is_silent_and_then_fires():
    fires = {rule["alert"]: False for rule in rules()}
    for case in cases():
        *silent, last = case["promql_expr_test"]
        name = case["name"].partition(",")[0]
        assert silent
        assert not [each for each in silent if each["exp_samples"]], case["name"]
        assert last["exp_samples"] == [{"labels": f'{{alertname="{name}"}}', "value": 1}], case["name"]
        fires[name] = True
    assert all(fires.values()), fires


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_a_case_is_made_of_what_the_program_tells(case):
    for each in case["input_series"]:
        name, _, selector = each["series"].partition("{")
        labels = set(re.findall(r'(\w+)="', selector))
        mine = OF_THE_LIBRARY[name] if name in OF_THE_LIBRARY else {*TOLD[name].labels}
        assert labels <= mine | TARGET | ({"le"} if name.endswith("_bucket") else set()), name


def test_for_each_alert_there_is_a_fault_that_the_real_run_makes():
    faults = {alert for wave in WAVES for fault in wave for alert in fault.alerts}
    assert faults == {rule["alert"] for rule in rules()}


def test_the_rules_of_the_real_run_differ_in_times_alone():
    shipped = rules()
    short = YAML(typ="safe").load(shorten(RULES.read_text(), 12))["groups"][0]["rules"]
    for before, after in zip(shipped, short, strict=True):
        times = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        assert times.keys() <= {"expr", "for"}
        numbers = re.compile(r"\d+(?:\.\d+)?(?:ms|[smh])?")
        assert numbers.sub("", before["expr"]) == numbers.sub("", after["expr"])
    found = {rule["alert"]: rule for rule in short}
    assert found["PerdureCallbacksLate"]["expr"] == "max(perdure_callbacks_lag_seconds) > 25"
    assert found["PerdureCallbacksLate"]["for"] == "5000ms"
    assert found["PerdureDeadLetters"]["expr"].endswith("(increase(perdure_dead_letters_total[75000ms])) > 0")
    assert "> 1" in found["PerdureEventLoopHeld"]["expr"]


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


@needs_promtool
def test_each_alert_fires_at_its_fault_and_not_before():
    said = subprocess.run([str(PROMTOOL), "test", "rules", str(CASES)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


@needs_promtool
def test_promtool_takes_the_rules_and_the_configuration():
    for words in (["check", "rules", str(RULES)], ["check", "config", str(FOLDER / "prometheus.yml")]):
        said = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
