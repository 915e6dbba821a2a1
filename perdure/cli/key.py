"""`perdure key`: who may use the gateway."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from perdure.cli.clients import Output
from perdure.cli.console import err, fail, out, print_json
from perdure.cli.database import working
from perdure.edge import keys
from perdure.edge.callers import ROLES, Role
from perdure.settings import Settings
from perdure.store.postgres import Pool

T = TypeVar("T")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

app = typer.Typer(help="Make, list and revoke keys of the HTTP gateway.", no_args_is_help=True, rich_markup_mode="rich")


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="key")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is; shown in lists and histories.")],
    *,
    role: Annotated[str, typer.Option("--role", help="viewer, operator or admin.")] = "operator",
    tenant: Annotated[str, typer.Option("--tenant", help="Whose runs and sessions it sees alone.")] = "default",
    agent: Annotated[list[str] | None, typer.Option("--agent", help="Only this agent; may be repeated.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="After this time: 12h, 30d.")] = None,
    rate_limit: Annotated[int | None, typer.Option("--rate-limit", help="Requests a minute.")] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """Make a key and print it: once, as only its hash is kept.

    A viewer reads, an operator also starts and steers runs, an admin also changes configuration. With the first key
    the gateway lets in nobody without one, on loopback too.
    """
    if role not in ROLES:
        fail(f"--role {role}: it is one of {', '.join(ROLES)}", code=2)
    chosen: Role = role
    lifetime = None if expires is None else _seconds(expires)

    async def work(pool: Pool, settings: Settings) -> keys.NewKey:
        under = await asyncio.to_thread(keys.pepper, settings)
        return await keys.create(
            pool,
            under,
            name=name,
            role=chosen,
            tenant=tenant,
            agents=agent or None,
            lifetime=lifetime,
            rate_limit=rate_limit,
        )

    made = working("perdure key", work)
    if output is Output.JSON:
        print_json({"key_id": made.key_id, "key": made.key})
        return
    err.print(f"key {made.key_id} of {name}; it is shown this once:", markup=False)
    typer.echo(made.key)


@app.command("list")
def list_(*, output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE) -> None:
    """List all keys, without their secrets."""
    found = working("perdure key", lambda pool, _: keys.listed(pool))
    if output is Output.JSON:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    columns = ("key_id", "name", "role", "tenant", "agents", "state", "expires_at", "last_used_at")
    for column in columns:
        table.add_column(column.replace("_at", "").replace("_", " "), overflow="fold")
    for each in found:
        shown = {**each, "agents": ", ".join(each["agents"]) if each["agents"] is not None else "all"}
        table.add_row(*("" if shown[column] is None else str(shown[column])[:32] for column in columns))
    out.print(table)


@app.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(help="The id of the key, or the whole key.")]) -> None:
    """End a key at once, at every gateway."""
    name = working("perdure key", lambda pool, _: keys.revoke(pool, key_id))
    out.print(f"revoked: {name}", markup=False)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,7})([smhd])", text)
    if found is None:
        fail(f"--expires {text}: give a number and s, m, h or d, as in 30d", code=2)
    return float(found[1]) * _UNITS[found[2]]
