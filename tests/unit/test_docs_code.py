"""The code in the documents is code."""

from __future__ import annotations

import ast
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from perdure.agent.triggers import triggers_of
from perdure.config.snapshot import AgentConfig
from perdure.runner.load import load_agent
from tests.docs import IDS, PAGES, Block, blocks

LANGUAGES = {"console", "python", "sh", "sql", "json", "yaml", "dockerfile", "text"}


def is_agent(block: Block) -> bool:
    """Whether a file of a page defines an agent."""
    return any(sign in block.text for sign in ("DurableAgent(", "Team(", "(BaseAgent)"))


PYTHON = [
    pytest.param(block, id=f"{name}:{at}")
    for page, name in zip(PAGES, IDS, strict=True)
    for at, block in enumerate(blocks(page))
    if block.language == "python"
]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_block_says_its_language_and_is_closed(page: Path):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    fences = [line for line in page.read_text().splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(blocks(page))


@pytest.mark.parametrize("block", PYTHON)
def test_every_python_block_compiles(block: Block):
    compile(block.text, block.name or "a block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", PYTHON)
def test_what_a_python_block_imports_of_perdure_is_there(block: Block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perdure":
            module = import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names)


@pytest.mark.parametrize("block", [one for one in PYTHON if one.values[0].kind == "file" and is_agent(one.values[0])])
def test_every_agent_that_a_page_shows_can_be_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`perdure agent FILE` finds it; its tools have schemas, its types exist, its triggers make sense."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"shown_{block.name}"
    file.write_text(block.text)
    found = load_agent(str(file))
    agent = found(AgentConfig.from_row({}, agent_name=found.name)) if isinstance(found, type) else found
    assert agent.workflows()
    assert triggers_of(agent) is not None


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_json_and_yaml_blocks_parse(page: Path):
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            YAML(typ="safe").load(block.text)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_a_file_of_a_page_is_an_agent_or_a_program_under_one_name(page: Path):
    names = [block.name for block in blocks(page) if block.kind == "file"]
    assert len(names) == len(set(names))
