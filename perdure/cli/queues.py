"""`perdure queues …`: what waits, what runs, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.clients import Output, working
from perdure.cli.console import err, out, print_json
from perdure.client import Client

app = typer.Typer(
    help="""Look at queues.

    [bold]perdure queues list[/]

    [bold]perdure config set mail queue_concurrency=5 queue_rate_limit=100[/]

    A queue is there once a run stands in it or it has a setting. Its settings are configuration, under its name.
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="queues")


@app.callback()
def _group() -> None:
    pass  # one command alone would take the group's place


@app.command("list")
def list_(
    queue: Annotated[str | None, typer.Argument(metavar="[QUEUE]", help="One queue. Default: all.")] = None,
    *,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """List queues: their depth, what runs, their limits, and what their runs wait for."""

    async def work(client: Client) -> None:
        found = await client.queues(queue)
        if output is Output.JSON:
            print_json({"queues": found})
        elif not found:
            err.print("no queues: a run begins one with --queue, --priority or --fair-key")
        else:
            out.print(_table(found))

    working(work)


def _table(queues: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("queue", "pending", "delayed", "running", "limits", "waits for"):
        table.add_column(column, no_wrap=column != "limits", overflow="fold")
    for queue in queues:
        held = "".join(f" [red]({key} {why})[/]" for key, why in queue["held"].items())
        why = {"concurrency": "a place", "rate": f"its rate, until {(queue['next_start_at'] or '')[11:19]}"}
        table.add_row(
            escape(queue["queue"]),
            str(queue["pending"]),
            str(queue["delayed"]),
            str(queue["running"]),
            _limits(queue) + held,
            why.get(queue["waits_for"] or "", ""),
        )
    return table


def _limits(queue: Mapping[str, Any]) -> str:
    said = []
    if queue["concurrency"] is not None:
        said.append(f"{queue['concurrency']} at a time")
    if queue["process_concurrency"] is not None:
        said.append(f"{queue['process_concurrency']} a process")
    if queue["rate_limit"] is not None:
        said.append(f"{queue['rate_limit']} within {queue['rate_period_seconds']:g} s")
    return ", ".join(said) or "none"
