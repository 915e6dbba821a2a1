"""`perdure doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.clients import Output
from perdure.cli.console import log_warnings, out, print_json, run
from perdure.doctor import Finding, examine
from perdure.embedded.locate import locate
from perdure.settings import Settings, load_settings

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    *,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
    everything: Annotated[bool, typer.Option("--all", help="Show what is as it should be, too.")] = False,
) -> None:
    """Look at everything that the platform stands on, and say how each fault is mended.

    It looks at this machine, the settings of this environment, NATS with its streams, Postgres with its migrations,
    Redis, Consul if there is one, and every process that answers. Nothing is changed. The exit code is 1 when
    something does not work, and 0 when there are warnings at most.
    """
    settings = load_settings()
    log_warnings(settings)
    findings = run(_examine(settings))
    count = Counter(finding.status for finding in findings)
    if output is Output.JSON:
        print_json({"healthy": not count["error"], "findings": [asdict(finding) for finding in findings]})
    else:
        shown = [finding for finding in findings if everything or finding.status != "ok"]
        if shown:
            out.print(_table(shown))
        told = [(count["error"], "error"), (count["warning"], "warning"), (count["skipped"], "not looked at")]
        told += [(count["ok"], "ok")]
        out.print(
            ", ".join(f"{number} {what}{'s' if _plural(number, what) else ''}" for number, what in told if number)
        )
    if count["error"]:
        raise typer.Exit(1)


async def _examine(settings: Settings) -> list[Finding]:
    return await examine(await asyncio.to_thread(locate, settings))


def _plural(number: int, what: str) -> bool:
    return number != 1 and what in ("error", "warning")


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "area", "check"):
        table.add_column(column, no_wrap=True)
    for column in ("seen", "what to do"):
        table.add_column(column, overflow="fold")
    for each in findings:
        colour = _COLOURS[each.status]
        table.add_row(f"[{colour}]{each.status}[/]", each.area, each.check, escape(each.said), escape(each.fix))
    return table
