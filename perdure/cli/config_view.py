"""How `perdure config` shows things, and its YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from perdure.config.secrets import is_reference

LONGEST_CELL: Final = 400
Changes = dict[str, tuple[str | None, str | None]]


def settings(reply: Mapping[str, Any]) -> Table | str:
    """The reply of `config.get`."""
    if not (reply["configurations"] or reply.get("held") or reply.get("defaults")):
        return f"{escape(reply['agent_name'])} has no settings; what its code says holds"
    table = Table(title=f"{reply['agent_name']} at revision {reply['revision']}", title_justify="left")
    table.add_column("key", style="bold", no_wrap=True)
    table.add_column("value")
    held, origins = reply.get("held", {}), reply.get("origins")
    rows = {key: (_cell(value), (origins or {}).get(key, "")) for key, value in reply["configurations"].items()}
    if origins is not None:
        table.add_column("from")
        defaults = {key: value for key, value in reply.get("defaults", {}).items() if value is not None}
        rows |= {key: (_cell(str(value)), "code") for key, value in defaults.items() if key not in rows}
    for key, (value, origin) in sorted(rows.items()):
        table.add_row(escape(key), value, *([escape(origin)] if origins is not None else []))
    for key, hold in sorted(held.items()):
        why = f"revision {hold['revision']} is held back, revision {hold['value_revision']} counts: {hold['why']}"
        table.add_row(f"[yellow]{escape(key)}[/]", f"[yellow]{escape(why)}[/]")
    if reply.get("stale"):
        table.caption = "Postgres is away: this is what the ConfigManager knew last"
    return table


def history(agent: str, entries: list[dict[str, Any]]) -> Table:
    """Changes, the newest first."""
    table = Table(title=f"changes of {escape(agent)}", title_justify="left")
    for column in ("revision", "when", "who", "key", "old", "new"):
        table.add_column(column, no_wrap=column in ("revision", "when"))
    for entry in entries:
        when = datetime.fromisoformat(entry["changed_at"]).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            str(entry["revision"]),
            when,
            escape(entry["changed_by"]),
            escape(entry["config_key"]),
            _state(entry["old_value"], entry["old_active"]),
            _state(entry["new_value"], entry["new_active"]),
        )
    return table


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Changes:
    """What differs: key to (before, after), None where there is no row."""
    keys = sorted({*before, *after})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def difference(
    found: Changes, *, title: str | None = None, sides: tuple[str, str] = ("before", "after")
) -> Table | str:
    """The changes as a table; `sides` is what is compared."""
    if not found:
        return "no difference"
    table = Table(title=title, title_justify="left")
    for column in ("key", *sides):
        table.add_column(escape(column))
    for key, (before, after) in found.items():
        table.add_row(escape(key), f"[red]{_state(before)}[/]", f"[green]{_state(after)}[/]")
    return table


def update_line(body: Mapping[str, Any]) -> str:
    """One `config.update`."""
    keys = ", ".join(body["updated_keys"])
    return f"{_now()} [bold]{escape(body['agent_name'])}[/] revision {body['revision']} changed {escape(keys)}"


def applied_line(body: Mapping[str, Any]) -> str:
    """One `config.applied`."""
    who = f"{escape(body['agent_name'])} [dim]{escape(body['instance_id'])}[/]"
    colour = "green" if body["status"] == "applied" and not body["errors"] else "yellow"
    why = "".join(f"\n    {escape(key)}: {escape(str(text))}" for key, text in body["errors"].items())
    restart = f" [yellow]restart needed for {escape(', '.join(body['restart']))}[/]" if body.get("restart") else ""
    return f"{_now()}   {who} revision {body['revision']} [{colour}]{body['status']}[/]{restart}{why}"


def rollouts(agent: str, found: list[dict[str, Any]]) -> Table:
    """Rollouts, the newest first."""
    table = Table(title=f"rollouts of {escape(agent)}", title_justify="left")
    for column in ("id", "state", "changes", "first on", "by", "reason"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    for each in found:
        changes_ = ", ".join(f"{key}={value}" for key, value in each["changes"].items())
        cells = (each["state"], changes_, ", ".join(each["targets"]), each["started_by"], each["reason"] or "")
        table.add_row(str(each["rollout_id"]), *(_cell(cell) for cell in cells))
    return table


def _state(value: str | None, active: bool | None = True) -> str:
    if value is None:
        return "[dim]-[/]"
    return _cell(value) if active else f"{_cell(value)} [dim](inactive)[/]"


def _cell(value: str) -> str:
    shown = value if len(value) <= LONGEST_CELL else f"{value[:LONGEST_CELL]}… ({len(value)} characters)"
    return f"[cyan]{escape(shown)}[/]" if is_reference(value) else escape(shown)


def _now() -> str:
    return f"[dim]{datetime.now().astimezone().strftime('%H:%M:%S.%f')[:-3]}[/]"
