"""`perdure runs …`: look at runs and steer them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from perdure.cli import runs_control
from perdure.cli import runs_view as view
from perdure.cli.approvals import approval_of
from perdure.cli.clients import Output, parse_json, say_if_absent, working
from perdure.cli.config_options import By, user
from perdure.cli.console import err, fail, out, print_json
from perdure.cli.runs_control import STATUSES, Out, RunId, Wait, check_status, go_on
from perdure.client import Client
from perdure.testing import Recorder

app = typer.Typer(
    help="""Look at runs and steer them.

    [bold]perdure runs list --status failed[/]

    [bold]perdure runs show RUN_ID[/]

    [bold]perdure runs signal RUN_ID approved true[/]

    Started runs are durable: they are here until retention takes them, whatever process executes them.
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="runs")
    runs_control.register(app)


@app.command("list")
def list_(
    *,
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Runs of this agent.")] = None,
    status: Annotated[
        list[str] | None, typer.Option("--status", "-s", help=f"One of {STATUSES}; may be repeated.")
    ] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Runs of this workflow.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Runs of this version of their workflow.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Runs of this conversation.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="Runs of this queue.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Where the page before has ended.")] = None,
    output: Out = Output.TABLE,
) -> None:
    """List runs, the newest first."""
    check_status(status)

    async def work(client: Client) -> None:
        page = await client.list(
            agent=agent,
            status=status or None,
            workflow=workflow,
            version=version,
            session_id=session,
            queue=queue,
            limit=limit,
            cursor=cursor,
        )
        if output is Output.JSON:
            print_json({"runs": page.runs, "next_cursor": page.next_cursor})
            return
        if not page.runs:
            err.print("no runs" if cursor is None else "no more runs")
            return
        out.print(view.listed(page.runs))
        if page.next_cursor is not None:
            err.print(f"[dim]more: --cursor {page.next_cursor}[/]")

    working(work)


@app.command()
def show(
    run_id: RunId,
    *,
    tree: Annotated[
        bool, typer.Option("--tree", help="Its family instead: parents, children, forks and restarts.")
    ] = False,
    output: Out = Output.TABLE,
) -> None:
    """Show a run: how it is, its steps with times, attempts and errors, and its children."""

    async def work(client: Client) -> None:
        handle = await client.get(run_id)
        if tree:
            family = await handle.tree()
            if output is Output.JSON:
                print_json(family)
            else:
                out.print(view.family(family, run_id))
            return
        run = await handle.details()
        children = await view.children(client, run_id)
        if output is Output.JSON:
            print_json({**run, "children": children})
            return
        view.show(run, children)
        if run["status"] == "pending":
            await say_if_absent(client, handle.agent, run_id)

    working(work)


@app.command()
def fork(
    run_id: RunId,
    step: Annotated[
        str,
        typer.Argument(metavar="STEP", help="First step to redo: name, path or seq.", show_default=False),
    ],
    *,
    wait: Wait = False,
    output: Out = Output.TABLE,
) -> None:
    """Start a new run with the task of another and its journal up to STEP; its id is printed."""

    async def work(client: Client) -> None:
        handle = await client.fork(run_id, step)
        if output is Output.TABLE:
            out.print(handle.run_id)
        await go_on(handle, client, output, wait=wait)

    working(work)


@app.command()
def export(
    run_ids: Annotated[list[str], typer.Argument(metavar="RUN_ID...", help="The runs.", show_default=False)],
    *,
    folder: Annotated[Path, typer.Option("-o", "--output", help="The folder of the files.")] = Path("histories"),
) -> None:
    """Write the histories of runs as files, one a run, for tests that replay them against new code."""

    async def work(client: Client) -> None:
        try:
            files = await Recorder(folder).record(client, *run_ids)
        except OSError as error:
            fail(f"--output {folder} cannot be written to: {error.strerror}; name a folder that can be", code=2)
        for file in files:
            out.print(str(file), markup=False, soft_wrap=True)

    working(work)


@app.command()
def approve(
    run_id: RunId,
    call_id: Annotated[str | None, typer.Argument(metavar="[CALL_ID]", help="Needed when several wait.")] = None,
    *,
    deny: Annotated[bool, typer.Option("--deny", help="Refuse it.")] = False,
    edit: Annotated[str | None, typer.Option("--edit", help="Let it go with these arguments: a JSON object.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", "-r", help="Why; the model reads it.")] = None,
    arguments_hash: Annotated[
        str | None, typer.Option("--hash", help="Decide only if the arguments have this hash. Default: as requested.")
    ] = None,
    by: By = None,
) -> None:
    """Decide on a tool call that waits for a person: approve it, [bold]--deny[/] it, or [bold]--edit[/] it."""
    if deny and edit is not None:
        fail("use --deny or --edit, not both", code=2)
    arguments = None if edit is None else parse_json(edit)
    if arguments is not None and not isinstance(arguments, dict):
        fail(f"--edit takes a JSON object of arguments, not {edit!r}", code=2)
    decision: Literal["approve", "deny", "edit"] = "deny" if deny else "approve" if edit is None else "edit"

    async def work(client: Client) -> None:
        handle = await client.get(run_id)
        call, digest = await approval_of(handle, call_id, arguments_hash)
        await handle.approve(call, digest, decision, arguments=arguments, reason=reason, decided_by=by or user())
        done = {"approve": "approved", "deny": "denied", "edit": "approved with other arguments"}[decision]
        err.print(f"{done}: call {call} of run {run_id}", markup=False, soft_wrap=True)

    working(work)
