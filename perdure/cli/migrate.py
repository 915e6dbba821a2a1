"""`perdure migrate`: the SQL in migrations/, applied in order."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli.console import fail, log_warnings, out, run
from perdure.settings import load_settings
from perdure.store import migrate as migrations


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate")(migrate)


def migrate(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: list what is not applied yet, exit 1 if anything is.")
    ] = False,
) -> None:
    """Apply the SQL files of [bold]migrations/[/] that DATABASE_URL does not have yet.

    Each file is one transaction; several at once take turns. A file that was changed or removed after it was applied
    is refused.
    """
    settings = load_settings()
    log_warnings(settings)
    if check:
        pending = run(migrations.check(settings))
        if pending:
            for name in pending:
                out.print(name)
            fail(f"{len(pending)} migration(s) are not applied; run `perdure migrate`")
        out.print("up to date")
        return
    applied = run(migrations.migrate(settings))
    for name in applied:
        out.print(f"applied {name}")
    if not applied:
        out.print("up to date")
