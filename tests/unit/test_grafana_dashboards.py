"""Every panel of the dashboards asks for metrics and labels that the program tells."""

from __future__ import annotations

import json
import re

import pytest
from ruamel.yaml import YAML

from tests.docs import ROOT
from tests.promql import TOLD, wrong

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board["panels"] if panel["type"] != "row"]


def expressions():
    return [target["expr"] for _, panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=lambda each: each if isinstance(each, str) else each["title"])
def test_a_panel_asks_for_what_is_told_and_names_its_lines_by_labels_that_are_there(name, panel):
    variables = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    for target in panel["targets"]:
        assert list(wrong(target["expr"])) == []
        used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
        assert used <= variables
        grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert not grouped or label in re.split(r",\s*", grouped[0]), (panel["title"], label)


@pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & places, panel["title"]
        places |= mine


@pytest.mark.parametrize("board", DASHBOARDS.values(), ids=DASHBOARDS)
def test_a_variable_of_a_dashboard_asks_for_a_label_that_is_there(board):
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            assert label in TOLD[series].labels


def test_grafana_finds_the_dashboards_and_the_sources_that_they_ask():
    read = YAML(typ="safe").load
    sources = read(GRAFANA / "provisioning" / "datasources" / "perdure.yml")["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "jaeger"}
    (provider,) = read(GRAFANA / "provisioning" / "dashboards" / "perdure.yml")["providers"]
    assert provider["options"]["path"] == "/etc/perdure/dashboards"
    for board in DASHBOARDS.values():
        assert board["templating"]["list"][0]["type"] == "datasource"
        for panel in board["panels"]:
            assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("rate(perdure_runs_ended_total[5m])", "nobody tells perdure_runs_ended_total"),
        ('perdure_lease_held{run="x"}', "perdure_lease_held has no label run"),
        ("sum by (tenant) (perdure_lease_held)", "has the label tenant"),
        ("rate(perdure_run_seconds[5m])", "nobody tells perdure_run_seconds"),
        ("vector(1)", "asks for no metric"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said(expression, said):
    assert said in "; ".join(wrong(expression))
