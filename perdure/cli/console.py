"""What every command prints with."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, Final, NoReturn, TextIO, TypeVar

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from perdure.errors import ApiError, PerdureError
from perdure.observe.logging import setup_logging
from perdure.settings import Settings

T = TypeVar("T")

WIDE: Final = 10_000  # columns of a pipe or a file: nothing is cut or folded there


# C0 and DEL as their pictures; C1, which has none, as what cannot be shown. Rich itself leaves carriage returns out.
_SHOWN: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def columns_of(stream: TextIO) -> int | None:
    """The columns of `stream`; none where the terminal, or `COLUMNS`, says so."""
    return None if stream.isatty() or "COLUMNS" in os.environ else WIDE


def visible(text: str) -> str:
    """`text` with its control characters shown instead of sent; line breaks and tabs stay."""
    return text.translate(_SHOWN)


class Terminal(Console):
    """What agents, users and models say cannot steer the terminal that shows it: no colours, titles or clipboard."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As Rich does it, with no control character of the text's own. A pipe gets it as it is."""
        return super().render_str(visible(text) if self.is_terminal else text, **options)


out = Terminal(highlight=False, width=columns_of(sys.stdout))
"""Results: what a pipe should get."""
err = Terminal(stderr=True, highlight=False, width=columns_of(sys.stderr))
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
