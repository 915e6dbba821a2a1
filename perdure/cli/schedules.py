"""`perdure schedules …`: cron expressions and intervals whose moments become runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.clients import Output, parse_json, working
from perdure.cli.console import err, out, print_json
from perdure.cli.run import MOMENTS
from perdure.client import Client

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.", show_default=False)]
Out = Annotated[Output, typer.Option("-o", "--output", help="How to print.")]

app = typer.Typer(
    help="""Make runs at the moments of cron expressions.

    [bold]perdure schedules set report assistant '0 9 * * mon-fri' --timezone Europe/Rome --task 'Write the report.'[/]

    [bold]perdure schedules list[/]

    Whatever process is up: the scheduler makes one run for a moment, and the agent takes it when it is there.
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class Missed(StrEnum):
    """What becomes of moments at which no scheduler was up."""

    SKIP = "skip"
    LATEST = "latest"
    ALL = "all"


class Overlap(StrEnum):
    """What becomes of a moment while the run of an earlier one goes on."""

    ALLOW = "allow"
    SKIP = "skip"
    BUFFER_ONE = "buffer_one"


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="schedules")


@app.command("list")
def list_(
    *,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Schedules of this agent.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="How many.")] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Where the page before has ended.")] = None,
    output: Out = Output.TABLE,
) -> None:
    """List schedules with their next moments."""

    async def work(client: Client) -> None:
        page = await client.schedules(agent=agent, limit=limit, cursor=cursor)
        if output is Output.JSON:
            print_json({"schedules": page.schedules, "next_cursor": page.next_cursor})
            return
        if not page.schedules:
            none = "no schedules: `perdure schedules set NAME AGENT CRON` makes one"
            err.print(none if cursor is None else "no more schedules", soft_wrap=True)
            return
        out.print(_table(page.schedules))
        if page.next_cursor is not None:
            err.print(f"[dim]more: --cursor {page.next_cursor}[/]")

    working(work)


@app.command("set")
def set_(
    name: Name,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Whose runs they are.", show_default=False)],
    cron: Annotated[
        str, typer.Argument(metavar="CRON", help="Five fields, @daily and the like, or @every 30s.", show_default=False)
    ],
    *,
    timezone: Annotated[str, typer.Option("--timezone", "-z", help="Like Europe/Rome.")] = "UTC",
    task: Annotated[str | None, typer.Option("--task", "-t", help="JSON, or any text. Default: the moment.")] = None,
    workflow: Annotated[str, typer.Option("--workflow", "-w", help="Which of the agent's workflows.")] = "run",
    missed: Annotated[Missed, typer.Option("--missed", help="Moments at which no scheduler was up.")] = Missed.LATEST,
    missed_limit: Annotated[
        int, typer.Option("--missed-limit", min=1, max=1000, help="With --missed all: the newest so many.")
    ] = 100,
    overlap: Annotated[
        Overlap, typer.Option("--overlap", help="A moment while the run of an earlier one goes on.")
    ] = Overlap.ALLOW,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="The queue its runs stand in.")] = None,
    priority: Annotated[int, typer.Option("--priority", "-p", min=-1000, max=1000, help="The higher one first.")] = 0,
    fair_key: Annotated[str | None, typer.Option("--fair-key", help="Runs of different keys take turns.")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Make it paused.")] = False,
    output: Out = Output.TABLE,
) -> None:
    """Make a schedule, or change the one of this name."""
    given: dict[str, Any] = {} if task is None else {"task": parse_json(task)}

    async def work(client: Client) -> dict[str, Any]:
        return await client.set_schedule(
            name,
            agent,
            cron,
            timezone=timezone,
            workflow=workflow,
            missed=missed.value,
            missed_limit=missed_limit,
            overlap=overlap.value,
            queue=queue,
            priority=priority,
            fair_key=fair_key,
            paused=True if paused else None,
            **given,
        )

    _show(work, output)


@app.command()
def pause(name: Name, *, output: Out = Output.TABLE) -> None:
    """Let no moment become a run until `perdure schedules resume`."""
    _show(lambda client: client.pause_schedule(name), output)


@app.command()
def resume(name: Name, *, output: Out = Output.TABLE) -> None:
    """Go on with the next moment from now; `perdure schedules backfill` makes up for what passed."""
    _show(lambda client: client.resume_schedule(name), output)


@app.command()
def delete(name: Name) -> None:
    """Take a schedule away. Its runs stay. One that an agent's code declares goes with the code."""

    async def work(client: Client) -> None:
        await client.delete_schedule(name)
        err.print(f"schedule {name} is gone", markup=False)

    working(work)


@app.command()
def backfill(
    name: Name,
    since: Annotated[datetime, typer.Option("--from", formats=MOMENTS, help="The first moment.", show_default=False)],
    to: Annotated[datetime, typer.Option("--to", formats=MOMENTS, help="The last one.", show_default=False)],
    *,
    output: Out = Output.TABLE,
) -> None:
    """Make runs for past moments that have none, at most 1,000 at a time."""

    async def work(client: Client) -> None:
        run_ids = await client.backfill_schedule(name, since.astimezone(), to.astimezone())
        if output is Output.JSON:
            print_json({"run_ids": run_ids})
        else:
            err.print(f"{len(run_ids)} new runs")

    working(work)


def _show(work: Callable[[Client], Awaitable[dict[str, Any]]], output: Output) -> None:
    async def shown(client: Client) -> None:
        schedule = await work(client)
        if output is Output.JSON:
            print_json(schedule)
        else:
            out.print(_table([schedule]))

    working(shown)


def _table(schedules: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("schedule", "agent", "cron", "time zone", "next", "last", "missed"):
        table.add_column(column, no_wrap=True)
    for one in schedules:
        name = one["agent"] if one["workflow"] == "run" else f"{one['agent']}:{one['workflow']}"
        paused = f"[yellow]paused[/] {escape(one['error'] or '')}".rstrip()
        waits = paused if one["paused"] else _moment(one["next_at"])
        table.add_row(
            one["name"],
            escape(name),
            escape(one["cron"]),
            one["timezone"],
            "[dim]no code declares it[/]" if one.get("retired_at") else waits,
            _moment(one["last_at"]),
            f"all, {one['missed_limit']}" if one["missed"] == "all" else one["missed"],
        )
    return table


def _moment(moment: str | None) -> str:
    return "" if moment is None else f"{moment[:16].replace('T', ' ')} UTC"
