"""The commands in the documents exist, with the options that are written there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.core import TyperArgument

from tests.docs import IDS, PAGES, ROOT, blocks, calls_of_perdure, code_spans, command_line, resolve, section
from tests.docs_cli import argument, leaves, options

REFERENCE = ROOT / "docs" / "reference" / "cli.md"
COMMANDS = dict(leaves(command_line()))
ANEW = "write it anew: python -m tests.docs_cli > docs/reference/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_in_a_shell_block_would_be_taken(page: Path):
    for block in blocks(page):
        for words in calls_of_perdure(block.text) if block.language == "sh" else ():
            command, path, rest = resolve(words)
            assert path, f"`perdure {' '.join(words)}` names no command"
            command.make_context(" ".join(path), list(rest))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_in_a_sentence_exists(page: Path):
    for span in code_spans(page):
        if span.startswith("perdure ") and span != "perdure is ready":
            command, _, rest = resolve(shlex.split(span)[1:])
            named = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert named <= options(command) | {"--help"}, span


@pytest.mark.parametrize("path", COMMANDS)
def test_the_reference_lists_each_command_with_each_of_its_options(path: str):
    text = section(REFERENCE, f"perdure {path}")
    listed = {word for word in text.replace("`", " ").replace(",", " ").split() if word.startswith("--")}
    assert options(COMMANDS[path]) <= listed, ANEW
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, TyperArgument):
            assert f"`{argument(parameter)}`" in text, ANEW


def test_the_reference_lists_no_command_that_is_not_there():
    lines = REFERENCE.read_text().splitlines()
    headings = [line.removeprefix("## perdure ") for line in lines if line.startswith("## ")]
    assert sorted(headings) == sorted(COMMANDS), ANEW


def test_an_option_that_is_no_more_is_not_listed():
    text = REFERENCE.read_text()
    there = {name for command in COMMANDS.values() for name in options(command)} | {"--help"}
    assert {word.split()[0] for word in text.split("`") if word.startswith("--")} <= there, ANEW
