"""The console's page asks only for routes that the gateway has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from perdure.edge.app import create_app
from perdure.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "services" / "console" / "page"
CALL = re.compile(r'\b(get|post|patch|events)\((?:at\(\[([^\]]*)\]|"([^"]+)")')


def asked() -> list[Any]:
    found: set[tuple[str, str]] = set()
    for script in sorted(PAGE.glob("*.js")):
        for verb, segments, plain in CALL.findall(script.read_text()):
            parts = [each.strip() for each in segments.split(",")]
            path = plain or "".join(f"/{each.strip(chr(34))}" if each.startswith('"') else "/{}" for each in parts)
            if parts[-1].startswith("..."):  # what `act` adds to a run's path
                found |= {(verb, f"{path.removesuffix('/{}')}/{act}") for act in ("cancel", "resume")}
            else:
                found.add((verb, path))
    return [pytest.param(*each, id=" ".join(each)) for each in sorted(found)]


@pytest.fixture(scope="module")
def routes() -> dict[str, set[str]]:
    door = Mock(settings=Settings(), only=None)
    paths = create_app(door).openapi()["paths"]
    return {re.sub(r"\{[^}]*\}", "{}", path): set(operations) for path, operations in paths.items()}


def test_the_page_asks_for_something():
    assert len(asked()) > 10


def test_why_a_run_is_pending_is_shown_by_its_message():
    shown = [each for script in PAGE.glob("run*.js") for each in re.findall(r"\b\w+\.reason\b\S*", script.read_text())]
    assert len(shown) == 2
    assert all(".reason?.message" in each for each in shown), shown


@pytest.mark.parametrize(("verb", "path"), asked())
def test_a_route_that_the_page_asks_for_is_there(verb: str, path: str, routes: dict[str, set[str]]):
    assert ("get" if verb == "events" else verb) in routes.get(path, set()), path
