"""YAML files of configuration: stable order, and comments that survive."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from perdure.errors import InvalidRequest


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
