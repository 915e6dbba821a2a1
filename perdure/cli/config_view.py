"""How `perdure config` shows things, and its YAML files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from rich.markup import escape
from rich.table import Table

from perdure.config.secrets import is_reference
from perdure.errors import InvalidRequest

LONGEST_CELL: Final = 400
Changes = dict[str, tuple[str | None, str | None]]


def settings(reply: Mapping[str, Any]) -> Table:
    """The reply of `config.get`."""
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


def difference(found: Changes, *, title: str | None = None) -> Table | str:
    """The changes as a table."""
    if not found:
        return "no difference"
    table = Table(title=title, title_justify="left")
    for column in ("key", "before", "after"):
        table.add_column(column)
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
    return f"{_now()}   {who} revision {body['revision']} [{colour}]{body['status']}[/]{why}"


def read_file(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a YAML file by layer. Raises `InvalidRequest` that names the place and the fix."""
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415 - only these two commands need it

    try:
        loaded = _yaml().load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror or error}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    agents = loaded.get("agents") if isinstance(loaded, dict) else None
    if not isinstance(agents, dict):
        raise InvalidRequest(f"{file} has no `agents:` with a mapping of agents below it; see `perdure config export`")
    rows: dict[str, dict[str, str]] = {}
    for name, values in agents.items():
        if not isinstance(values or {}, dict):
            raise InvalidRequest(f"{file}: agents.{name} must be a mapping of keys to values")
        rows[str(name)] = {str(key): _text(file, name, key, value) for key, value in (values or {}).items()}
    return rows


def to_yaml(rows: Mapping[str, Mapping[str, str]], *, into: Path | None = None, only: list[str] | None = None) -> str:
    """The rows as YAML: sorted, or in the order and with the comments of the file `into` if that is there.

    `only`: the layers that were asked for; others in the file stay as they are.
    """
    yaml = _yaml()
    document: Any = None
    if into is not None and into.exists():
        read_file(into)
        document = yaml.load(into.read_text(encoding="utf-8"))
    if document is None:
        document = {"agents": {}}
    agents = document["agents"]
    for name in [name for name in agents if name not in rows and only is None]:
        del agents[name]
    for name, values in sorted(rows.items()):
        if agents.get(name) is None:
            agents[name] = {}
        standing = agents[name]
        for key in [key for key in standing if key not in values]:
            del standing[key]
        for key, value in sorted(values.items()):
            if key not in standing or _text(into, name, key, standing[key]) != value:
                standing[key] = _native(value)
    written = io.StringIO()
    yaml.dump(document, written)
    return written.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML  # noqa: PLC0415 - only these two commands need it

    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.allow_unicode = True
    return yaml


def _native(text: str) -> Any:
    """A number, boolean or list where its text is exactly the JSON of it; any other text stays text."""
    from ruamel.yaml.scalarstring import LiteralScalarString  # noqa: PLC0415 - only these two commands need it

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    if isinstance(value, (bool, int, float, list)) and orjson.dumps(value).decode() == text:
        return value
    return LiteralScalarString(text) if "\n" in text and text == text.strip() else text


def _text(file: Path | None, name: Any, key: Any, value: Any) -> str:
    if value is None:
        raise InvalidRequest(f"{file}: agents.{name}.{key} has no value; give one, or leave the key out")
    if isinstance(value, str):
        return str(value)
    try:
        return orjson.dumps(_plain(value)).decode()
    except TypeError as error:
        raise InvalidRequest(f"{file}: agents.{name}.{key}: {error}; put it in quotes") from None


def _plain(value: Any) -> Any:
    """Without the classes by which ruamel keeps comments."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _state(value: str | None, active: bool | None = True) -> str:
    if value is None:
        return "[dim]-[/]"
    return _cell(value) if active else f"{_cell(value)} [dim](inactive)[/]"


def _cell(value: str) -> str:
    shown = value if len(value) <= LONGEST_CELL else f"{value[:LONGEST_CELL]}… ({len(value)} characters)"
    return f"[cyan]{escape(shown)}[/]" if is_reference(value) else escape(shown)


def _now() -> str:
    return f"[dim]{datetime.now().astimezone().strftime('%H:%M:%S.%f')[:-3]}[/]"
