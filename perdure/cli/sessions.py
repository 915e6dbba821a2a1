"""`perdure sessions`: conversations, read, exported and forgotten."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from perdure.cli.clients import Output, working
from perdure.cli.console import err, out, print_json
from perdure.cli.live import short
from perdure.cli.runs_view import ago
from perdure.client import Client

_ROLES = {"user": "cyan", "assistant": "green", "tool": "yellow"}

app = typer.Typer(help="Read, export and forget conversations.", no_args_is_help=True, rich_markup_mode="rich")

Session = Annotated[str, typer.Argument(help="The session's id.")]
Agent = Annotated[str | None, typer.Option("--agent", "-a", help="Needed when several agents have this session.")]


class Format(StrEnum):
    """How a conversation is exported."""

    JSON = "json"
    MARKDOWN = "markdown"


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="sessions")


@app.callback()
def _group() -> None:
    """Read, export and forget conversations."""


@app.command("list")
def list_(
    agent: Annotated[str, typer.Argument(help="Whose conversations.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", help="The next_cursor of the page before.")] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """List an agent's conversations, last used first."""

    async def work(client: Client) -> None:
        page = await client.sessions(agent, limit=limit, cursor=cursor)
        if output is Output.JSON:
            print_json({"sessions": page.sessions, "next_cursor": page.next_cursor})
        elif not page.sessions:
            err.print(f"{escape(agent)} has no conversations yet: `perdure chat {escape(agent)}` begins one")
        else:
            out.print(_listed(page.sessions))
            if page.next_cursor is not None:
                err.print(f"[dim]more: --cursor '{page.next_cursor}'[/]")

    working(work)


@app.command()
def show(session: Session, agent: Agent = None) -> None:
    """Print a conversation as it was: who said what, and which tools were called."""

    async def work(client: Client) -> None:
        for message in await client.history(session, agent=agent):
            colour = _ROLES.get(message["role"], "dim")
            out.print(f"[{colour}]{escape(message['role'])}[/] [dim]{message['time'][:19]}[/] {escape(_said(message))}")

    working(work)


@app.command()
def export(
    session: Session,
    agent: Agent = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="json has every field.")] = Format.JSON,
) -> None:
    """Print a whole conversation for other programs: [bold]perdure sessions export ID > talk.json[/]."""

    async def work(client: Client) -> None:
        messages = await client.history(session, agent=agent)
        if form is Format.JSON:
            print_json({"session_id": session, "messages": list(messages)})
            return
        for message in messages:
            out.print(f"**{message['role']}**: {_said(message)}\n", markup=False, highlight=False, soft_wrap=True)

    working(work)


@app.command()
def reset(session: Session, agent: Agent = None) -> None:
    """Forget the messages of a conversation; its next turn begins anew."""

    async def work(client: Client) -> None:
        count = await client.reset_session(session, agent=agent)
        out.print(f"session {session}: {count} {'message' if count == 1 else 'messages'} forgotten")

    working(work)


def _said(message: dict[str, Any]) -> str:
    called = [
        f"calls {call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()
    ]
    content = message.get("content")
    text = content if isinstance(content, str) else "" if content is None else short(content)
    return " ".join([text, *called]).strip()


def _listed(sessions: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("session", "messages", "tokens", "cost", "last used", "turn under way"):
        table.add_column(column, no_wrap=True)
    for one in sessions:
        cost = f"{one['cost']:.4f}" if one["cost"] else ""
        table.add_row(
            one["session_id"],
            str(one["messages"]),
            str(one["tokens"] or ""),
            cost,
            ago(one["updated_at"]),
            one["open_run"] or "",
        )
    return table
