"""Arguments and options that several commands share."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

Agent = Annotated[
    str, typer.Argument(help="An agent's name, or '*' for the layer under all agents.", show_default=False)
]
Instance = Annotated[
    str | None, typer.Option("--instance", help="One instance of the agent: the layer above the agent's own.")
]
Expected = Annotated[
    int | None, typer.Option("--expected-revision", help="Refuse if the configuration has changed since this revision.")
]
By = Annotated[str | None, typer.Option("--by", help="Who does it, for the history. Default: your user name.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table or json.")]


def user() -> str:
    """Who calls, for the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "perdure"
