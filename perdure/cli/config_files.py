"""`perdure config export` and `import`: configuration in a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import config_view as view
from perdure.cli import config_yaml as files
from perdure.cli.config_calls import Caller, calling, own_rows
from perdure.cli.config_options import By, user
from perdure.cli.console import out, run
from perdure.errors import InvalidRequest


def export(
    agents: Annotated[list[str] | None, typer.Argument(help="Default: all that have rows.", show_default=False)] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Write here; a file that is there keeps its comments.")
    ] = None,
) -> None:
    """Write the rows as YAML, in a stable order, for a repository.

    [bold]perdure config export > config.yaml[/]

    [bold]perdure config export assistant --file config.yaml[/]
    """

    async def work(caller: Caller) -> dict[str, dict[str, str]]:
        names = agents or list(await caller.layers())
        return {name: await own_rows(caller, name) for name in names}

    rows = run(calling(work))
    if file is None:
        typer.echo(files.to_yaml(rows), nl=False)
    else:
        file.write_text(files.to_yaml(rows, into=file, only=agents), encoding="utf-8")
        out.print(f"{sum(map(len, rows.values()))} rows of {len(rows)} agents are in {file}")


def import_(
    file: Annotated[Path, typer.Argument(help="A file as `export` writes it.", show_default=False)],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave keys that the file does not have.")] = False,
    by: By = None,
) -> None:
    """Make the agents of a file what the file says. Agents that it does not name stay as they are.

    Nothing of an agent is overwritten that somebody changed while the command ran.

    [bold]perdure config import config.yaml --dry-run[/]

    [bold]perdure config import config.yaml[/]
    """
    wanted = files.read_file(file)

    async def work(caller: Caller) -> int:
        changed = 0
        for name, rows in wanted.items():
            reply = await caller.get(name, own=True)
            found = view.changes(reply["configurations"], rows)
            if keep:
                found = {key: values for key, values in found.items() if values[1] is not None}
            if not found:
                continue
            changed += 1
            out.print(view.difference(found, title=name))
            if not dry_run:
                values = {key: value for key, (_, value) in found.items()}
                try:
                    done = await caller.set(name, values, expected=reply["table_revision"], by=by or user())
                except InvalidRequest as error:
                    raise InvalidRequest(f"{name}: {error.message}") from error
                out.print(f"{name} is at revision {done['revision']}")
        return changed

    changed = run(calling(work))
    if not changed:
        out.print("nothing to change")
    elif dry_run:
        out.print(f"{changed} agent(s) would change; nothing was written")
