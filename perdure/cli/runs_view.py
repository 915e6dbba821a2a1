"""Runs as tables and trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from perdure.cli.clients import print_value
from perdure.cli.console import WIDE, out
from perdure.cli.live import short, took
from perdure.client import Client

DEEPEST: Final = 8
WIDEST: Final = 100  # children shown of one run
_COLOURS: Final = {
    "completed": "green",
    "failed": "red",
    "dead": "red",
    "blocked": "red",
    "needs_review": "red",
    "cancelled": "yellow",
    "waiting": "cyan",
    "paused": "cyan",
    "running": "blue",
    "retrying": "yellow",
    "timed_out": "yellow",
}


def status_text(status: str) -> str:
    """A state in its colour."""
    colour = _COLOURS.get(status)
    return f"[{colour}]{status}[/]" if colour else status


def listed(runs: Sequence[Mapping[str, Any]]) -> Table:
    """A table of `run.list`."""
    table = Table(box=None, pad_edge=False, expand=out.width < WIDE)
    table.add_column("run", no_wrap=True, min_width=max(len(run["run_id"]) for run in runs))
    table.add_column("agent", no_wrap=True)
    table.add_column("status", no_wrap=True, min_width=max(len(run["status"]) for run in runs))
    for column in ("created", "took"):
        table.add_column(column, no_wrap=True)
    queued, talking, wrong = (any(run.get(key) for run in runs) for key in ("queue", "session_id", "error"))
    if queued:
        table.add_column("queue", no_wrap=True)
    if talking:
        table.add_column("session", overflow="fold")
    if wrong:
        table.add_column("error", overflow="ellipsis", no_wrap=True, ratio=1)
    for run in runs:
        name = run["agent"] if run["workflow"] == "run" else f"{run['agent']}:{run['workflow']}"
        table.add_row(
            run["run_id"],
            escape(name),
            status_text(run["status"]),
            ago(run["created_at"]),
            took(run["started_at"], run["finished_at"]),
            *([_place(run)] if queued else []),
            *([run["session_id"] or ""] if talking else []),
            *([escape(_error(run))] if wrong else []),
        )
    return table


def show(run: Mapping[str, Any], children: Sequence[Mapping[str, Any]]) -> None:
    """Print one run of `run.get`."""
    out.print(_facts(run))
    if run["steps"]:
        out.print()
        out.print(_steps(run["steps"]))
    if children:
        tree = Tree("[bold]children[/]")
        _branch(tree, children)
        out.print()
        out.print(tree)
    if "output" in run:
        out.print("\n[bold]output[/]")
        print_value(run["output"])
    if run.get("error"):
        out.print(f"\n[bold red]error[/] {escape(_error(run))}", soft_wrap=True)


def _facts(run: Mapping[str, Any]) -> Table:
    waits = ", ".join(
        [
            *(f"signal {name}" for name in run["waiting_for"]),
            *(f"run {child}" for child in run["waiting_children"]),
            *([f"until {moment(run['wake_at'])}"] if run["wake_at"] and run["status"] == "waiting" else []),
        ]
    )
    facts = {
        "run": run["run_id"],
        "agent": run["agent"] if run["workflow"] == "run" else f"{run['agent']}, workflow {run['workflow']}",
        "status": None,
        "version": run.get("version"),
        "source": run.get("source_hash"),
        "task": short(run["task"]),
        "why pending": (run.get("reason") or {}).get("message"),
        "queue": _place(run) + (f", for {run['fair_key']}" if run.get("fair_key") else ""),
        "session": run["session_id"],
        "parent": run["parent_run_id"],
        "waits for": waits if run["status"] == "waiting" else "",
        "process": run["process_id"] if run["status"] == "running" else "",
        "claims without a step": run["attempts"] if run["attempts"] > 1 else "",
        "configuration": None if run["config_revision"] is None else f"revision {run['config_revision']}",
        "created": f"{moment(run['created_at'])} ({ago(run['created_at'])})",
        "took": took(run["started_at"], run["finished_at"]),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if name == "status":
            table.add_row(name, status_text(run["status"]))
        elif value:
            table.add_row(name, escape(str(value)))
    return table


def _steps(steps: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, expand=out.width < WIDE)
    for column in ("seq", "path", "step"):
        table.add_column(column, no_wrap=True)
    for column in ("status", "attempt", "began", "took"):
        table.add_column(column, no_wrap=True)
    table.add_column("input", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("result", overflow="ellipsis", no_wrap=True, ratio=1)
    for step in steps:
        name = step["name"] if step["kind"] == "step" else f"{step['kind']} {step['name']}"
        result = "" if step["result"] is None else short(step["result"])
        text = escape(_error(step) if step["error"] else result)
        table.add_row(
            str(step["seq"]),
            escape(step["path"]),
            escape(name),
            status_text(step["status"]),
            str(step["attempt"]),
            step["started_at"][11:23],
            took(step["started_at"], step["finished_at"]),
            escape(_input(step.get("input"))),
            f"[red]{text}[/]" if step["error"] else text,
        )
    return table


def _input(said: Any) -> str:
    """What a step was called with, as its caller wrote it, or how long that is."""
    if not isinstance(said, dict):
        return ""
    if "bytes" in said:
        return f"{said['bytes']:,} bytes"
    args = [short(each) for each in said.get("args", ())]
    return ", ".join([*args, *(f"{name}={short(each)}" for name, each in said.get("kwargs", {}).items())])


async def children(client: Client, run_id: str, depth: int = 0) -> list[dict[str, Any]]:
    """The children of a run, oldest first, each with its own under `children`."""
    page = await client.list(parent_run_id=run_id, limit=WIDEST)
    found = list(reversed(page.runs))
    for child in found:
        child["children"] = await children(client, child["run_id"], depth + 1) if depth < DEEPEST else []
    return found


def family(found: Mapping[str, Any], run_id: str) -> Tree:
    """A tree of `run.tree`; the run that was asked for is bold."""
    nodes: dict[str | None, Tree] = {None: Tree("[bold]runs[/]")}
    for run in found["runs"]:
        name = f"[bold]{run['run_id']}[/]" if run["run_id"] == run_id else run["run_id"]
        relation = "" if run["relation"] in ("root", "child") else f"[dim]{run['relation']}[/] "
        text = f"{relation}{status_text(run['status'])} {escape(run['agent'])} {name}"
        after = f"[dim]{took(run['started_at'], run['finished_at'])}[/] {escape(_error(run))}"
        nodes[run["run_id"]] = nodes.get(run["above"], nodes[None]).add(f"{text} {after}".rstrip())
    if found["more"]:
        nodes[None].add("[dim]and others[/]")
    return nodes[None]


def _branch(tree: Tree, runs: Sequence[Mapping[str, Any]]) -> None:
    for run in runs:
        text = f"{status_text(run['status'])} {escape(run['agent'])} {run['run_id']}"
        took_text = took(run["started_at"], run["finished_at"])
        node = tree.add(f"{text} [dim]{took_text}[/] {escape(_error(run))}".rstrip())
        _branch(node, run["children"])


def _place(run: Mapping[str, Any]) -> str:
    """A run's queue, with its priority where it has one and, while it waits, for what."""
    if not run.get("queue"):
        return ""
    why = (run.get("reason") or {}).get("code", "").removeprefix("waiting_") if run["status"] == "pending" else ""
    said = [f"priority {run['priority']}" if run["priority"] else "", why.replace("_", " ")]
    more = ", ".join(word for word in said if word)
    return f"{run['queue']} ({more})" if more else str(run["queue"])


def moment(iso: str) -> str:
    """A moment, to the second."""
    return f"{iso[:19].replace('T', ' ')} UTC"


def ago(iso: str | None) -> str:
    """How long ago that was, in its largest unit."""
    if iso is None:
        return ""
    seconds = max(0, round((datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds()))
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def _error(row: Mapping[str, Any]) -> str:
    error = row.get("error")
    if not isinstance(error, dict):
        return ""
    return f"{error.get('type', 'Error')}: {error.get('message', '')}"
