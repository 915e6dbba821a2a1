"""`perdure run`: start a run, and see it through."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer

from perdure.cli.clients import Output, parse_json, print_value, say_if_absent, working
from perdure.cli.console import err, fail, out, print_json
from perdure.cli.live import RunView
from perdure.client import Client, RunHandle
from perdure.errors import RunFailed

MOMENTS = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S%z"]
LAST_LINES = 1.0  # seconds that the events of an ended run may take to arrive


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", show_default=False)],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task: JSON, or any text.", show_default=False)],
    *,
    wait: Annotated[
        bool, typer.Option("--wait/--detach", help="Wait for its end, or return once it is durable.")
    ] = True,
    workflow: Annotated[str, typer.Option("--workflow", "-w", help="Which of the agent's workflows.")] = "run",
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="An id of your own: the same id and task again are the same run.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="The conversation it belongs to.")] = None,
    callback: Annotated[
        str | None, typer.Option("--callback", help="Tell this https:// URL, or this NATS subject, of its end.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", "-t", min=0.001, help="Seconds to wait; the run goes on after them.")
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="The queue it stands in.")] = None,
    priority: Annotated[int, typer.Option("--priority", "-p", min=-1000, max=1000, help="The higher one first.")] = 0,
    fair_key: Annotated[str | None, typer.Option("--fair-key", help="Runs of different keys take turns.")] = None,
    delay: Annotated[float | None, typer.Option("--delay", min=0, help="Seconds before it begins.")] = None,
    start_at: Annotated[datetime | None, typer.Option("--start-at", formats=MOMENTS, help="When it begins.")] = None,
    dedup_key: Annotated[
        str | None, typer.Option("--dedup-key", help="While a run holds the key, this is that run.")
    ] = None,
    dedup_window: Annotated[
        float | None, typer.Option("--dedup-window", min=0.001, help="Seconds it holds the key, not until its end.")
    ] = None,
    debounce_key: Annotated[
        str | None, typer.Option("--debounce-key", help="Starts with the key become one run, with the newest task.")
    ] = None,
    debounce: Annotated[
        float | None, typer.Option("--debounce", min=0.001, help="Seconds after the last of them it begins.")
    ] = None,
    debounce_max: Annotated[
        float | None, typer.Option("--debounce-max", min=0.001, help="Seconds after the first, at the latest.")
    ] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print the outcome.")] = Output.TABLE,
) -> None:
    """Start a run of AGENT and print its output.

    [bold]perdure run assistant 'Write a haiku about programming.'[/]

    [bold]perdure run invoices '{"file": "may.csv"}' --detach[/]

    A task that is a JSON object, array, number, true, false or null is sent as that, everything else as text. An
    accepted run is durable: it goes on when this command, or the agent's process, is stopped. Progress is on standard
    error, the output on standard output. The exit code is 0 when the run completed, 1 when it did not.
    """
    value = parse_json(task)

    async def work(client: Client) -> None:
        handle = await client.start(
            agent,
            value,
            workflow=workflow,
            run_id=run_id,
            session_id=session,
            queue=queue,
            priority=priority,
            fair_key=fair_key,
            delay=delay,
            start_at=None if start_at is None else start_at.astimezone(),
            dedup_key=dedup_key,
            dedup_window=dedup_window,
            debounce_key=debounce_key,
            debounce=debounce,
            debounce_max=debounce_max,
            callback=callback,
        )
        await say_if_absent(client, handle.agent, handle.run_id)
        if wait:
            await see_through(handle, output, timeout)
        elif output is Output.JSON:
            print_json({"status": "accepted", "run_id": handle.run_id, "agent": handle.agent})
        else:
            out.print(handle.run_id)
            err.print(f"[dim]accepted; `perdure runs show {handle.run_id}` shows it[/]", soft_wrap=True)

    working(work)


async def see_through(handle: RunHandle, output: Output, timeout: float | None = None) -> None:
    """Show a run's progress and print its outcome. Raises `RunFailed` when it has none."""
    try:
        value = await _watched(handle, timeout)
    except TimeoutError as error:
        fail(error, advice=_how_to_look(handle))
    except asyncio.CancelledError:
        err.print(f"run {handle.run_id} goes on. {_how_to_look(handle)}", soft_wrap=True)
        raise
    except RunFailed:
        if output is Output.JSON:
            print_json(await handle.details(steps=False))
        raise
    if output is Output.JSON:
        print_json(await handle.details(steps=False))
    else:
        print_value(value)


async def _watched(handle: RunHandle, timeout: float | None) -> Any:
    with RunView(handle.agent, handle.run_id) as view:
        watching = asyncio.create_task(view.follow(handle))
        try:
            return await handle.result(timeout)
        except (TimeoutError, asyncio.CancelledError):
            watching.cancel()
            raise
        finally:
            await asyncio.wait({watching}, timeout=LAST_LINES)
            watching.cancel()
            # Progress is for the eye: the outcome is what counts, and its errors are told by `result`.
            await asyncio.gather(watching, return_exceptions=True)


def _how_to_look(handle: RunHandle) -> str:
    return f"`perdure runs show {handle.run_id}` shows it, `perdure runs cancel {handle.run_id}` ends it"
