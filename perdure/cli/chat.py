"""`perdure chat`: talk with an agent, one run a turn."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import aclosing
from typing import Annotated, Final
from uuid import uuid4

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from perdure import subjects
from perdure.cli.clients import advice, working
from perdure.cli.console import err, fail, out
from perdure.cli.lines import Lines
from perdure.cli.live import approval_line
from perdure.client import Client, RunEvent
from perdure.errors import RunFailed

QUIT: Final = frozenset({"/quit", "/exit"})
_COMMAND: Final = re.compile(r"/[a-z]+")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", show_default=False)],
    *,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with this conversation.")] = None,
) -> None:
    """Talk with AGENT: what you type is its task, its answer comes as it is written.

    [bold]perdure chat assistant[/]

    [bold]echo 'What is the weather?' | perdure chat assistant --session mine[/]

    [bold]/quit[/] or Ctrl-D ends it. The conversation is kept under its session id, and so is a turn that you do not
    wait for. With piped input each line is a turn, and the exit code is 1 when one of them failed.
    """
    try:
        chosen = subjects.run_id(session, field="--session") if session is not None else uuid4().hex[:12]
    except ValueError as error:
        fail(error, code=2)

    async def work(client: Client) -> bool:
        return await _converse(client, agent, chosen)

    if not working(work) and not sys.stdin.isatty():
        raise typer.Exit(1)


async def _converse(client: Client, agent: str, session: str) -> bool:
    """Turn after turn until the input ends; whether all of them went well."""
    lines = Lines(sys.stdin.fileno())
    person = sys.stdin.isatty()
    if not await client.replicas(agent, first=True):
        err.print(
            f"[yellow]note[/] no replica of {escape(agent)} is registered: an answer comes once one has started "
            "(`perdure agent FILE`)",
            soft_wrap=True,
        )
    if person:
        err.print(f"[dim]session {session}; /quit ends, `perdure chat {escape(agent)} --session {session}` goes on[/]")
    well = True
    while True:
        if person:
            out.print("[bold cyan]you>[/] ", end="")
        line = await lines.next()
        if line is None or line.strip() in QUIT:
            return well
        if not line.strip():
            continue
        if _COMMAND.fullmatch(line.strip()):
            err.print(f"[yellow]{escape(line.strip())}[/] is no command; /quit ends. Nothing was sent.")
            continue
        well = await _turn(client, agent, line, session) and well


async def _turn(client: Client, agent: str, text: str, session: str) -> bool:
    handle = await client.start(agent, text, session_id=session)
    view = TurnView(out)
    try:
        async with aclosing(handle.events()) as events:
            async for event in events:
                view.show(event)
                if event["type"] == "run.blocked":
                    break
        view.end(await handle.result())
    except RunFailed as error:
        view.broken_off()
        err.print(f"[bold red]error[/]: {escape(f'{error}. {advice(error)}')}", soft_wrap=True)
        return False
    except asyncio.CancelledError:
        view.broken_off()
        err.print(f"the turn goes on as run {handle.run_id}: `perdure runs show {handle.run_id}`", soft_wrap=True)
        raise
    return True


class TurnView:
    """One answer on its way: its pieces as they come when `console` is a terminal, else the whole at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._shown = ""

    def show(self, event: RunEvent) -> None:
        """Show one event of the turn's run."""
        kind, data = event["type"], event["data"]
        if kind == "llm.delta":
            if data.get("reset"):
                self._note("(the answer broke off; once more)")
            elif self._live and (text := str(data.get("text", ""))):
                self._shown += text
                self._console.print(text, end="", markup=False, soft_wrap=True)
        elif kind in ("tool.started", "tool.completed"):
            word = "failed" if data.get("error") else kind.removeprefix("tool.")
            self._note(f"tool {data.get('tool', '?')} {word}")
        elif kind == "tool.progress":
            if isinstance(fraction := data.get("fraction"), int | float):
                self._note(f"{data.get('text') or 'progress'} {fraction:.0%}")
        elif kind == "step.retrying":
            error = data.get("error")
            self._note(f"trying again: {error.get('message') if isinstance(error, dict) else data.get('name')}")
        elif kind == "approval.requested":
            self.broken_off()
            err.print(f"[yellow]approval needed[/] {approval_line(event)}", soft_wrap=True)

    def end(self, output: object) -> None:
        """Show the answer, unless its pieces were shown."""
        text = output if isinstance(output, str) else orjson.dumps(output, option=orjson.OPT_INDENT_2).decode()
        if self._shown.strip() == text.strip():
            self.broken_off()
            return
        self.broken_off()
        self._console.print(text, markup=False, soft_wrap=True)

    def broken_off(self) -> None:
        """End the line that pieces have begun."""
        if self._shown:
            self._console.print()
        self._shown = ""

    def _note(self, text: str) -> None:
        if self._live:
            self.broken_off()
            self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)
