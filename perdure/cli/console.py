"""What every command prints with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import orjson
import typer
from rich.console import Console
from rich.markup import escape

from perdure.errors import ApiError, PerdureError
from perdure.observe.logging import setup_logging
from perdure.settings import Settings

T = TypeVar("T")

out = Console(highlight=False)
"""Results: what a pipe should get."""
err = Console(stderr=True, highlight=False)
"""Progress and errors."""


def fail(error: BaseException | str, *, code: int = 1, advice: str = "") -> NoReturn:
    """Print an error and what to do about it the one way all commands do, and end the command."""
    what = f" ({error.code})" if isinstance(error, ApiError) else ""
    text = f"{error}. {advice}" if advice else str(error)
    err.print(f"[bold red]error[/]{what}: {escape(text)}", soft_wrap=True)
    raise typer.Exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; an error of Perdure becomes one clear line and exit code 1, Ctrl-C exit code 130."""
    try:
        return asyncio.run(work)
    except PerdureError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def log_warnings(settings: Settings) -> None:
    """Log warnings only: a command prints its own progress. `PERDURE_LOG_LEVEL=debug` shows all."""
    if settings.log_level != "debug":
        settings = settings.model_copy(update={"log_level": "warning"})
    setup_logging(settings, service="perdure")


def print_json(value: Any) -> None:
    """Print JSON for a program: no colour, no wrapping."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
