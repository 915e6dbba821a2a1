"""`perdure audit`: who did what, and whether the log was touched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from perdure.cli.clients import Output
from perdure.cli.console import fail, out, print_json
from perdure.cli.database import working
from perdure.settings import Settings
from perdure.store import audit
from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries

T = TypeVar("T")
_SQL = load_queries("audit.sql")

app = typer.Typer(
    help="Who did what, and whether the log of it was touched.", no_args_is_help=True, rich_markup_mode="rich"
)


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.add_typer(app, name="audit")


def _reading(work: Callable[[PooledConnection, Settings], Awaitable[T]]) -> T:
    async def read(pool: Pool, settings: Settings) -> T:
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            return await work(connection, settings)

    return working("perdure audit", read)


@app.command("list")
def list_(
    *,
    actor: Annotated[str | None, typer.Option("--actor", help="Acts of this one.")] = None,
    act: Annotated[str | None, typer.Option("--act", help="Such acts: run.cancel, or run.% for all of runs.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="What was done to this run, key or schedule.")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", min=0.0, help="Of the last so many hours.")] = None,
    before: Annotated[int | None, typer.Option("--before", help="Below this id: the next page.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")] = 50,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """List acts, the newest first. Changes of configuration are in `perdure config history`."""
    since = None if hours is None else datetime.now(UTC) - timedelta(hours=hours)

    async def work(connection: PooledConnection, _: Settings) -> list[dict[str, Any]]:
        rows = await connection.fetch(_SQL["list"], before, actor, act, subject, since, limit)
        return [{**dict(row), "at": row["at"].isoformat()} for row in rows]

    found = _reading(work)
    if output is Output.JSON:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("audit_id", "at", "actor", "act", "subject", "detail", "sql_user"):
        table.add_column(column.replace("_", " "), overflow="fold")
    for each in found:
        shown = (each["audit_id"], each["at"][:19], each["actor"], each["act"], each["subject"], each["detail"])
        table.add_row(*map(str, shown), each["sql_user"])
    out.print(table)


@app.command("verify")
def verify(
    *,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", help="CHAIN:BLOCK:DIGEST as printed once: the chain was not cut or made anew."),
    ] = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="How to print.")] = Output.TABLE,
) -> None:
    """Compare every act and every change of configuration with the chain of hashes.

    Exit code 1 names the first broken row. Set PERDURE_AUDIT_KEY as the scheduler has it. Keep the line of each chain
    somewhere else, and give it as --head later.
    """
    kept: dict[str, tuple[int, bytes]] = {}
    for said in head or ():
        chain, _, rest = said.partition(":")
        seq, _, digest = rest.partition(":")
        try:
            if chain not in audit.CHAINS:
                raise ValueError
            kept[chain] = (int(seq), bytes.fromhex(digest))
        except ValueError:
            fail(f"--head {said}: give CHAIN:BLOCK:DIGEST as `perdure audit verify` printed it", code=2)

    async def work(connection: PooledConnection, found: Settings) -> list[audit.Verdict]:
        return [
            await audit.verify(connection, chain, found.audit_key, days=found.audit_days, remembered=kept.get(chain))
            for chain in audit.CHAINS
        ]

    verdicts = _reading(work)
    if output is Output.JSON:
        print_json([
            {
                "chain": each.chain, "broken": each.broken or None, "rows": each.rows, "pruned": each.pruned,
                "masked": each.masked, "waiting": each.waiting, "head": f"{each.chain}:{each.seq}:{each.digest.hex()}",
            }
            for each in verdicts
        ])  # fmt: skip
    else:
        for each in verdicts:
            if each.broken:
                continue
            counts = ((each.pruned, "pruned"), (each.masked, "masked later"), (each.waiting, "not sealed yet"))
            more = [f"{count} {what}" for count, what in counts if count]
            out.print(f"{each.chain}: {each.rows} rows as they were sealed{', ' if more else ''}{', '.join(more)}")
            out.print(f"  {each.chain}:{each.seq}:{each.digest.hex()}", soft_wrap=True, markup=False)
    if broken := [f"{each.chain}: {each.broken}" for each in verdicts if each.broken]:
        fail("; ".join(broken))
