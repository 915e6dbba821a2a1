"""What the commands on runs share: the client of the right platform, errors with advice, values from arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeVar

import orjson
import typer

from perdure.cli.console import err, fail, log_warnings, out, print_json
from perdure.client import Client
from perdure.embedded.locate import locate
from perdure.errors import Conflict, InvalidRequest, NotFound, PerdureError, RunFailed
from perdure.settings import load_settings

T = TypeVar("T")


class Output(StrEnum):
    """How a command prints."""

    TABLE = "table"
    JSON = "json"


def working(work: Callable[[Client], Awaitable[T]]) -> T:
    """Do `work` with a client of NATS_URL, else of the platform that runs in this folder.

    Ends the command with exit code 1 for an error, 2 for an argument that cannot be, 130 after Ctrl-C.
    """
    settings = load_settings()
    log_warnings(settings)

    async def connected() -> T:
        async with Client(await asyncio.to_thread(locate, settings)) as client:
            return await work(client)

    try:
        return asyncio.run(connected())
    except InvalidRequest as error:
        fail(error, code=2)
    except PerdureError as error:
        fail(error, advice=advice(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def advice(error: PerdureError) -> str:
    """What to do next; empty where the error's own text says it."""
    if isinstance(error, RunFailed):
        again = f"; `perdure runs resume {error.run_id}` goes on with it" if error.status != "cancelled" else ""
        return f"`perdure runs show {error.run_id}` shows its steps{again}"
    if isinstance(error, NotFound) and "no run" in error.message:
        return "`perdure runs list` shows the runs there are"
    if isinstance(error, Conflict) and "another task" in error.message:
        return "Choose another --run-id, or none"
    return ""


def parse_json(text: str) -> Any:
    """A task or payload as typed: JSON if it is an object, array, number, true, false or null, else the text itself.

    Text that begins like a JSON object or array and is none is taken as text, with a word of warning.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.lstrip().startswith(("{", "[")):
            err.print(f"[yellow]note[/] this looks like JSON and is not ({error}): it is sent as text", soft_wrap=True)
        return text
    return text if isinstance(value, str) else value


def print_value(value: Any) -> None:
    """Print an output: text as it is, everything else as JSON."""
    if isinstance(value, str):
        out.print(value, markup=False, soft_wrap=True)
    else:
        print_json(value)


async def say_if_absent(client: Client, agent: str, run_id: str) -> None:
    """Warn when no replica of `agent` is there: the run is accepted all the same."""
    if not await client.replicas(agent, first=True):
        err.print(
            f"[yellow]note[/] no replica of {agent} is registered: run {run_id} stays pending until one starts "
            f"(`perdure agent FILE`; `perdure agents list` shows who is there). Nothing is lost.",
            soft_wrap=True,
        )
