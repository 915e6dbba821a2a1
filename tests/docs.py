"""The documents of the project, as tests read them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperGroup

from perdure.cli.main import build

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("agents/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)  # fmt: skip
_MARK = re.compile(r"<!-- (?P<kind>file|walk): (?P<name>[^>]+?) -->\n\Z")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `kind` and `name` are those of the comment before it: `<!-- file: ask.py -->`."""

    language: str
    text: str
    kind: str = ""
    name: str = ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(source):
        mark = _MARK.search(source, 0, match.start())
        found.append(Block(match["language"], match["text"], *((mark["kind"], mark["name"]) if mark else ())))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """What stands between single backticks in the prose of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of the same or a higher level."""
    source = page.read_text(encoding="utf-8")
    begin = re.search(rf"^(#+) {re.escape(heading)}$", source, re.MULTILINE)
    assert begin, f"{page.name} has no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", source[begin.end() :], re.MULTILINE)
    return source[begin.end() : begin.end() + end.start() if end else None]


@cache
def command_line() -> TyperGroup:
    """The whole command line."""
    command = typer.main.get_command(build())
    assert isinstance(command, TyperGroup)
    return command


def resolve(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """(the command that `words` after `perdure` name, its path, what is left for it)."""
    command: Any = command_line()
    path: list[str] = []
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        found = command.commands.get(words[0])
        assert found, f"there is no command `perdure {' '.join([*path, words[0]])}`"
        command, path, words = found, [*path, words[0]], words[1:]
    return command, path, words


def calls_of_perdure(script: str) -> list[list[str]]:
    """The words after `perdure` for each call of it in a shell script."""
    found = []
    joined = re.sub(r"\\\n\s*", " ", script)
    for line in joined.splitlines():
        for match in re.finditer(r"(?:^|\$\(|&& |\| |; )(?:\.venv/bin/)?perdure(?= |$)(.*)", line):
            rest = match[1].partition(')"')[0] if "$(" in line[: match.start() + 2] else match[1]
            words: list[str] = []
            for word in shlex.split(rest, comments=True):
                if word in {"|", "&&", ";", ">", ">>", "&"}:
                    break
                words.append(word)
            found.append(words)
    return found
