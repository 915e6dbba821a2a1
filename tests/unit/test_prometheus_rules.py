"""The rules for alerts name what the program tells, and each alert has its page."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from tests.docs import ROOT
from tests.promql import wrong

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "rules" / "perdure.yml"
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


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_takes_the_rules_and_the_configuration():
    for words in (["check", "rules", str(RULES)], ["check", "config", str(FOLDER / "prometheus.yml")]):
        said = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
