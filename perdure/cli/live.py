"""A run as it goes, in the terminal: a line for each step that is done, bars for progress, a spinner for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from perdure.cli.console import err, visible
from perdure.client import RunEvent, RunHandle

LONGEST: Final = 160  # characters of a value in a line
PERCENT_STEP: Final = 10  # without a terminal, progress is a line each ten per cent
_OWN: Final = frozenset({"config", "fork", "patch"})  # kinds of rows that are the engine's, not the author's


class RunView:
    """Shows the events of one run. Without a terminal there are plain lines alone."""

    def __init__(self, agent: str, run_id: str, console: Console = err) -> None:
        self._console = console
        self._begun: dict[str, str] = {}
        self._said: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._main: TaskID | None = None
        self._title = f"{agent} {run_id}"
        if console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn()
            self._progress = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._main = self._progress.add_task(f"[bold]{escape(self._title)}[/]", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    async def follow(self, handle: RunHandle) -> None:
        """Show the run until its end."""
        async with aclosing(handle.events()) as events:
            async for event in events:
                self.show(event)

    def show(self, event: RunEvent) -> None:
        """Show one event."""
        kind, data = event["type"], event["data"]
        if kind == "tool.progress":
            self._bar(data)
        elif kind.startswith("step."):
            self._step(kind.removeprefix("step."), event)
        elif kind == "run.waiting":
            self._now("waits")
        elif kind == "run.blocked":
            self._line(f"[bold red]blocked[/] {_message(data)}")
        elif kind in ("tool.started", "tool.completed"):
            word = "failed" if data.get("error") else kind.removeprefix("tool.")
            self._line(f"[dim]tool {escape(str(data.get('tool', '?')))} {word}[/]")
        elif kind == "approval.requested":
            self._line(f"[yellow]approval needed[/] {approval_line(event)}")
        elif not kind.startswith(("run.", "llm.")):
            self._line(f"[dim]{escape(kind)} {escape(short(data))}[/]")

    def _step(self, word: str, event: RunEvent) -> None:
        data = event["data"]
        name, path, kind = escape(str(data.get("name"))), str(data.get("path")), data.get("kind", "step")
        if kind in _OWN or kind == "event":
            return
        what = name if kind == "step" else f"{escape(str(kind))} {name}"
        attempt = f" (attempt {data['attempt']})" if data.get("attempt", 1) > 1 else ""
        if word == "started":
            self._begun[path] = event["time"]
            self._now(f"{what}{attempt}" + (f" until {data['due_at'][11:19]} UTC" if "due_at" in data else ""))
        elif word == "completed":
            self._end_bar(path)
            lasted = took(self._begun.pop(path, None), event["time"])
            self._line(f"[green]✓[/] {what}{attempt}" + (f" [dim]{lasted}[/]" if lasted else ""))
        elif word == "retrying":
            self._line(f"[yellow]↻[/] {what}{attempt}: {_message(data)}")
        else:
            self._end_bar(path)
            self._line(f"[red]✗[/] {what}{attempt}: {_message(data)}")

    def _now(self, text: str) -> None:
        if self._progress is not None and self._main is not None:
            self._progress.update(self._main, description=f"[bold]{escape(self._title)}[/] {visible(text)}")

    def _bar(self, data: Mapping[str, Any]) -> None:
        step, text = str(data.get("step", "")), visible(escape(str(data.get("text") or "progress")))
        fraction = data.get("fraction")
        percent = 100.0 * min(1.0, max(0.0, fraction)) if isinstance(fraction, int | float) else 0.0
        if self._progress is None:
            before = self._said.get(step, -PERCENT_STEP)
            if percent - before >= PERCENT_STEP or percent >= 100 > before:
                self._said[step] = int(percent)
                self._line(f"{text} {percent:.0f}%")
            return
        if step not in self._bars:
            self._bars[step] = self._progress.add_task(text, total=100)
        self._progress.update(self._bars[step], completed=percent, description=f"  {text}")

    def _end_bar(self, path: str) -> None:
        if self._progress is not None and path in self._bars:
            self._progress.remove_task(self._bars.pop(path))

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


def approval_line(event: RunEvent) -> str:
    """What is to be approved, and the command that does it."""
    data = event["data"]
    call = str(data.get("call_id", ""))
    what = escape(f"{data.get('tool', 'a tool')} {short(data.get('arguments'))}")
    return f"{what}: `perdure runs approve {event['run_id']} {escape(call)}` (or --deny)"


def short(value: Any) -> str:
    """`value` as one line of JSON, cut."""
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def took(begun: str | None, ended: str | None) -> str:
    """The time between two moments, for people; empty when one is not known."""
    if begun is None or ended is None:
        return ""
    seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _message(data: Mapping[str, Any]) -> str:
    error = data.get("error")
    return escape(str(error.get("message", "")) if isinstance(error, dict) else "no reason was recorded")
