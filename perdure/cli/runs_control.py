"""`perdure runs cancel|terminate|pause|resume|restart|signal`: one run, or all that a filter finds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, cast, get_args

import typer

from perdure.cli.clients import Output, parse_json, say_if_absent, working
from perdure.cli.console import err, fail, out, print_json
from perdure.cli.run import see_through
from perdure.client import Client, RunHandle
from perdure.client.types import BulkAction
from perdure.fields import RunStatus

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run.", show_default=False)]
Out = Annotated[Output, typer.Option("-o", "--output", help="How to print.")]
Wait = Annotated[bool, typer.Option("--wait", help="Watch it to its end and print its output.")]

_MaybeRunId = Annotated[str | None, typer.Argument(metavar="[RUN_ID]", help="The run; or say which with options.")]
_All = Annotated[bool, typer.Option("--all", help="Every run that the other options leave.")]
_Agent = Annotated[str | None, typer.Option("--agent", "-a", help="Runs of this agent.")]
_Status = Annotated[list[str] | None, typer.Option("--status", "-s", help="Runs in this state; may be repeated.")]
_Workflow = Annotated[str | None, typer.Option("--workflow", help="Runs of this workflow.")]
_Version = Annotated[str | None, typer.Option("--version", help="Runs of this version of their workflow.")]
_Older = Annotated[str | None, typer.Option("--older-than", help="Runs created longer ago, like 30m, 12h or 7d.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Reason = Annotated[str | None, typer.Option("--reason", "-r", help="Why; the run's error says it.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only say how many runs there are.")]

STATUSES: Final = ", ".join(get_args(RunStatus))
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DONE: Final = {
    "cancel": "asked to end",
    "terminate": "terminated",
    "pause": "asked to pause",
    "resume": "resumed",
    "restart": "restarted",
    "signal": "signalled",
}


@dataclass(frozen=True, slots=True)
class _Given:
    """What a command for one run was given beside its id."""

    reason: str | None
    wait: bool
    output: Output


_One = Callable[[Client, str, _Given], Awaitable[None]]
_OWN: Final = frozenset({"reason", "wait"})  # options that only some of the commands have


def _command(*own: str) -> Callable[[_One], Callable[..., None]]:
    """Make a command of what is done to one run: with RUN_ID that, without it the same for all that options find."""

    def decorate(one: _One) -> Callable[..., None]:
        action = cast("BulkAction", one.__name__)

        def command(
            run_id: _MaybeRunId = None, *, reason: _Reason = None, wait: Wait = False, everything: _All = False,
            agent: _Agent = None, status: _Status = None, workflow: _Workflow = None, version: _Version = None,
            older_than: _Older = None, dry_run: _Dry = False, yes: _Yes = False, output: Out = Output.TABLE,
        ) -> None:  # fmt: skip
            wanted = _wanted(agent, status, workflow, version, older_than)
            if run_id is None:
                _many(action, wanted, everything=everything, yes=yes, dry_run=dry_run, reason=reason)
                return
            if wanted or everything or dry_run:
                fail("give RUN_ID, or options that say which runs, not both", code=2)
            given = _Given(reason, wait, output)
            working(lambda client: one(client, run_id, given))

        full = inspect.signature(command, eval_str=True)
        shown = [each for each in full.parameters.values() if each.name not in _OWN.difference(own)]
        command.__signature__ = full.replace(parameters=shown)  # type: ignore[attr-defined]  # what Typer reads
        command.__name__, command.__doc__ = one.__name__, one.__doc__
        return command

    return decorate


@_command("reason")
async def cancel(client: Client, run_id: str, given: _Given) -> None:
    """End a run and its children as `cancelled`; their code may tidy up and undo. One that has ended stays as it is.

    Without RUN_ID: all runs that the options find.
    """
    handle = await client.get(run_id)
    await handle.cancel(given.reason)
    await tell(handle, given.output)


@_command("reason")
async def terminate(client: Client, run_id: str, given: _Given) -> None:
    """End a run and its children at once: none of their code runs any more, nothing is undone.

    Without RUN_ID: all runs that the options find.
    """
    handle = await client.get(run_id)
    await handle.terminate(given.reason)
    await tell(handle, given.output)


@_command()
async def pause(client: Client, run_id: str, given: _Given) -> None:
    """Let a run end the steps under way and begin nothing more, until `perdure runs resume`.

    Without RUN_ID: all runs that the options find.
    """
    handle = await client.get(run_id)
    await handle.pause()
    await tell(handle, given.output)


@_command("wait")
async def resume(client: Client, run_id: str, given: _Given) -> None:
    """Bring back a failed, dead, blocked, paused or needs_review run; it goes on after its last journaled step.

    Without RUN_ID: all runs that the options find; --status must be among them.
    """
    await go_on(await client.resume(run_id), client, given.output, wait=given.wait)


@_command("wait")
async def restart(client: Client, run_id: str, given: _Given) -> None:
    """Start a new run with the task of another, from its beginning; its id is printed, and the other stays.

    Without RUN_ID: all runs that the options find; --status must be among them.
    """
    handle = await client.restart(run_id)
    if given.output is Output.TABLE:
        out.print(handle.run_id)
    await go_on(handle, client, given.output, wait=given.wait)


def signal(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN_ID] NAME [PAYLOAD]",
            help="The run; the name that it waits for; JSON, or any text.",
            show_default=False,
        ),
    ],
    *,
    signal_id: Annotated[str | None, typer.Option("--id", help="The same id again counts once.")] = None,
    everything: _All = False,
    agent: _Agent = None,
    status: _Status = None,
    workflow: _Workflow = None,
    version: _Version = None,
    older_than: _Older = None,
    dry_run: _Dry = False,
    yes: _Yes = False,
) -> None:
    """Send a signal to a run; it is kept until the run waits for it.

    Without RUN_ID: to all runs that the options find, each once.
    """  # fmt: skip
    wanted = _wanted(agent, status, workflow, version, older_than)
    many = bool(wanted) or everything
    needed = ["NAME"] if many else ["RUN_ID", "NAME"]
    if not len(needed) <= len(words) <= len(needed) + 1:
        said = "with options that say which runs" if many else "or say which runs with options (--agent, --all, …)"
        fail(f"give {' '.join(needed)} [PAYLOAD], {said}; a PAYLOAD of several words goes in quotes", code=2)
    name, *rest = words[len(needed) - 1 :]
    value = parse_json(rest[0]) if rest else None
    if many:
        sent = {"name": name, "payload": value, "id": signal_id}
        _many("signal", wanted, everything=everything, yes=yes, dry_run=dry_run, reason=None, more=sent)
        return

    async def work(client: Client) -> None:
        handle = await client.get(words[0])
        await handle.signal(name, value, id=signal_id)
        err.print(f"sent {name} to run {words[0]}", markup=False, soft_wrap=True)

    working(work)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (cancel, terminate, pause, resume, restart, signal):
        app.command()(command)


def check_status(status: list[str] | None) -> None:
    """End the command when one of `status` is no state of a run."""
    for each in status or ():
        if each not in get_args(RunStatus):
            fail(f"there is no status {each!r}: use one of {STATUSES}", code=2)


def _wanted(
    agent: str | None, status: list[str] | None, workflow: str | None, version: str | None, older_than: str | None
) -> dict[str, Any]:
    check_status(status)
    said = {"agent": agent, "status": status or None, "workflow": workflow, "version": version}
    if older_than is not None:
        said["created_before"] = (datetime.now(UTC) - _age(older_than)).isoformat()
    return {key: value for key, value in said.items() if value is not None}


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        fail(f"--older-than takes a number and s, m, h or d, like 30m or 7d, not {text!r}", code=2)
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _many(
    action: BulkAction,
    wanted: dict[str, Any],
    *,
    everything: bool,
    yes: bool,
    dry_run: bool,
    reason: str | None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Count, ask, and do it page by page."""
    if not wanted and not everything:
        fail(f"say which run to {action}: RUN_ID, or --all, --agent, --status, …", code=2)
    if action in ("resume", "restart") and "status" not in wanted:
        fail(f"say in which states runs are to {action}, like --status failed", code=2)

    async def work(client: Client) -> None:
        count = await client.count(action, all=everything, **wanted)
        number = f"{'more than ' if count.more else ''}{count.matched:,} run{'' if count.matched == 1 else 's'}"
        if dry_run or count.matched == 0:
            err.print(f"{number} to {action}", markup=False)
            return
        if not yes and not typer.confirm(f"{action.capitalize()} {number}?", err=True):
            fail("nothing was done")
        done = skipped = failed = 0
        said = {"all": everything, "reason": reason, "cursor": count.cursor, **(more or {}), **wanted}
        async for page in client.bulk(action, **said):
            done += page.done
            skipped += page.skipped
            failed += len(page.failed)
            for each in page.failed:
                err.print(f"run {each['run_id']}: {each['error']['message']}", markup=False, soft_wrap=True)
            err.print(f"{_DONE[action]}: {done:,} of {count.matched:,}", markup=False)
        if skipped:
            err.print(f"left as they are, their state has changed: {skipped:,}", markup=False)
        if failed:
            fail(f"{failed:,} runs could not be {_DONE[action]}")

    working(work)


async def go_on(handle: RunHandle, client: Client, output: Output, *, wait: bool) -> None:
    """After a run was brought back, or a new one made of it: watch it, or say how it is."""
    await say_if_absent(client, handle.agent, handle.run_id)
    if wait:
        await see_through(handle, output)
    else:
        await tell(handle, output)


async def tell(handle: RunHandle, output: Output) -> None:
    """Say how a run is."""
    run = await handle.details(steps=False)
    if output is Output.JSON:
        print_json(run)
    else:
        err.print(f"run {handle.run_id} is {run['status']}", markup=False, soft_wrap=True)
