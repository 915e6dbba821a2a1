"""Writes the reference of the command line anew: `python -m tests.docs_cli > docs/reference/cli.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption

from tests.docs import command_line

HEAD = """# Commands

`perdure --help`, and `--help` after any command, say the same with examples. A command finds the platform by
`NATS_URL`, `DATABASE_URL` and `REDIS_URL`, else by the `.perdure` folder it is started beside, else at the default
ports. The exit code is 0 when it went well, 1 when it did not, 2 for a command line that cannot be, 130 after Ctrl-C.
"""


def leaves(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(path, command) of every command that does something."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options(command: Any) -> set[str]:
    """The long names of a command's options."""
    given = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
    names = [name for each in given for name in (*each.opts, *each.secondary_opts)]
    return {name for name in names if name.startswith("--")} - {"--help"}


def argument(parameter: TyperArgument) -> str:
    """How an argument is called."""
    return parameter.metavar or str(parameter.name).upper()


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_command(name, command) for name, command in leaves(command_line()))]).rstrip() + "\n"


def _command(name: str, command: Any) -> str:
    rows = [_row(each) for each in command.params if getattr(each, "name", "") != "help"]
    table = ["| | |", "| --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## perdure {name}", "", _plain((command.help or "").partition("\n\n")[0]), "", *table])


def _row(parameter: Any) -> str:
    said = _plain(parameter.help).replace("|", "\\|")
    if isinstance(parameter, TyperArgument):
        return f"| `{argument(parameter)}` | {said} |"
    names = sorted([*parameter.opts, *parameter.secondary_opts], key=len)
    value = "" if parameter.is_flag else " " + names[-1].lstrip("-").replace("-", "_").upper()
    default = getattr(parameter.default, "value", parameter.default)
    if default not in (None, False, True, ""):
        said += f" Default: {default}."
    shown = [f"`{name}{value}`" if name.startswith("--") else f"`{name}`" for name in names]
    return f"| {', '.join(shown)} | {said} |"


def _plain(text: str | None) -> str:
    text = re.sub(r"\[bold\](.+?)\[/\]", r"`\1`", text or "")
    return " ".join(re.sub(r"\[/?[a-z ]*\]", "", text).split())


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201 -- what it is for
