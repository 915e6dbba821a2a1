"""`perdure agents list`: who is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.clients import Output, working
from perdure.cli.console import err, out, print_json
from perdure.cli.runs_view import ago
from perdure.client import Client, Replica
from perdure.errors import Unavailable

_COLOURS = {"ok": "green", "warning": "yellow", "critical": "red", "absent": "red"}

app = typer.Typer(help="See which agents are there.", no_args_is_help=True, rich_markup_mode="rich")


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="agents")


@app.callback()
def _group() -> None:
    """See which agents are there."""


@app.command("list")
def list_(
    *,
    wait: Annotated[
        float, typer.Option("--wait", min=0.05, max=30, help="Seconds in which replicas may answer.")
    ] = 0.5,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """List the replicas of all agents: how they are, and on which configuration revision.

    Every agent process answers by itself (the NATS services protocol), so what is shown is alive. An agent that has
    runs to do and no replica is shown as absent.
    """

    async def work(client: Client) -> None:
        there = await client.replicas(wait=wait)
        waiting = await _waiting(client)
        alive = {replica.agent for replica in there}
        absent = {agent: count for agent, count in sorted(waiting.items()) if agent not in alive}
        if output is Output.JSON:
            agents: list[dict[str, Any]] = [asdict(replica) for replica in there]
            print_json({"replicas": agents, "absent": absent})
        elif there or absent:
            out.print(_table(there, absent))
        else:
            err.print("no agent is there: start one with `perdure agent FILE`, or the platform with `perdure up`")

    working(work)


async def _waiting(client: Client) -> Counter[str]:
    """Pending runs by agent, of the newest 500."""
    try:
        page = await client.list(status="pending", limit=500)
    except Unavailable:
        err.print("[yellow]note[/] the scheduler does not answer: agents with runs and no replica are not shown")
        return Counter()
    return Counter(run["agent"] for run in page.runs)


def _table(there: Sequence[Replica], absent: dict[str, int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("agent", "instance", "health", "config", "version", "started"):
        # a narrow terminal folds the instance: the other columns say who is there, and how
        table.add_column(column, no_wrap=column != "instance", overflow="fold")
    table.add_column("note", overflow="fold")
    for replica in there:
        table.add_row(
            replica.agent,
            replica.instance,
            _coloured(replica.health),
            "" if replica.config_revision is None else f"revision {replica.config_revision}",
            replica.version,
            ago(replica.started),
            escape("; ".join(f"{name}: {text}" for name, text in replica.findings.items())),
        )
    for agent, count in absent.items():
        runs = "1 run waits" if count == 1 else f"{count} runs wait"
        table.add_row(agent, "", _coloured("absent"), "", "", "", f"{runs} for a replica: `perdure agent FILE`")
    return table


def _coloured(health: str) -> str:
    colour = _COLOURS.get(health)
    return f"[{colour}]{health}[/]" if colour else health
