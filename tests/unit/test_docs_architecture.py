"""ARCHITECTURE.md names what is there: folders, queries, tables, tests."""

from __future__ import annotations

import re
from functools import cache

from perdure.store.queries import load_queries
from tests.docs import ROOT, section

PAGE = ROOT / "ARCHITECTURE.md"


@cache
def queries() -> set[str]:
    """The names of all blocks."""
    return {name for file in (ROOT / "perdure" / "store" / "sql").glob("*.sql") for name in load_queries(file.name)}


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    lines = [line for line in section(PAGE, heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_map_has_every_folder_of_the_library_and_the_repository():
    listed = {spans(row[0])[0].rstrip("/") for row in table("The map")}
    library = {f"perdure/{each.name}" for each in (ROOT / "perdure").iterdir() if (each / "__init__.py").exists()}
    assert library <= listed
    assert {"config_manager", "services/scheduler", "agents", "migrations", "deploy", "tests"} <= listed


def test_every_transition_names_queries_and_tests_that_are_there():
    rows = table("The states of a run")
    assert "".join(row[0] for row in rows) == "ABCDEFGHIJKLMN"
    for row in rows:
        assert set(spans(row[3])) <= queries(), row
        assert all((ROOT / path).exists() for path in spans(row[4])), row


def test_every_truth_names_a_test_that_is_there():
    for row in table("What is always true"):
        assert spans(row[2]) or row[2] == "none of its own yet", row
        assert all((ROOT / path).exists() for path in spans(row[2])), row


def test_every_query_that_is_called_a_block_is_there():
    for named in re.findall(r"blocks? ((?:`\w+`(?:, | and )?)+)", PAGE.read_text()):
        assert set(spans(named)) <= queries(), named


def test_every_table_is_there_and_listed():
    made = {
        (name, f"migrations/{file.name}")
        for file in (ROOT / "migrations").glob("*.sql")
        for name in re.findall(r"^CREATE TABLE (\w+)", file.read_text(), re.MULTILINE)
    }
    listed = {(name, spans(row[2])[0]) for row in table("The tables") for name in spans(row[0])}
    assert listed == made
