"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import IDS, PAGES, ROOT, blocks, code_spans, prose

TOP = {each.name for each in ROOT.iterdir()}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(aim), f"{page.name} links to {target}"


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", prose(page))
        waiting += [(page.parent / each).resolve() for each in found if not each.startswith("http")]
    assert set(PAGES) - reached - {ROOT / "CHANGELOG.md"} == set()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_that_is_named_is_there(page: Path):
    for span in code_spans(page):
        path = span.rstrip("/")
        if "/" not in span or "NNNN" in span or not re.fullmatch(r"[\w./-]+", span):
            continue
        if path.split("/")[0] in TOP - {".perdure", ".venv"}:
            assert (ROOT / path).exists(), f"{page.name} names {span}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_test_that_is_named_is_there(page: Path):
    for span in code_spans(page):
        file, _, name = span.partition("::")
        if name:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name} names {span}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_target_of_make_that_is_named_is_there(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    script = "\n".join(block.text for block in blocks(page) if block.language == "sh")
    named = [span for span in code_spans(page) if span.startswith("make ")] + re.findall(
        r"^make \w+", script, re.MULTILINE
    )
    assert {each.split()[1] for each in named} <= targets
