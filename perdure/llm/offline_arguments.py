"""Fills a JSON Schema from the words of a message, by fixed rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”|(?<!\w)\'([^\']*)\'(?!\w)')
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_PAIR = r"(?<![\w]){name}\s*[:=]\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s,;]+))"
_FILLER = re.compile(
    r"^(?:(?:for|to|of|the|a|an|with|on|in|at|about|please|tool|is|and|now|using|called)\b[\s:,]*)+", re.IGNORECASE
)
_TAIL = re.compile(r"(?:[\s,;.!?]+(?:and|then|please|now))*[\s,;.!?]*$", re.IGNORECASE)


class _Words:
    """The message, used up piece by piece."""

    def __init__(self, text: str) -> None:
        self.whole = text
        self.document = self._find_document(text)
        self.quoted = ["".join(groups) for groups in _QUOTED.findall(text)]
        bare = _QUOTED.sub(" ", text)
        self.numbers = _NUMBER.findall(bare)
        rest = _FILLER.sub("", bare.strip())
        self.rest = _TAIL.sub("", rest)

    @staticmethod
    def _find_document(text: str) -> Mapping[str, Any]:
        start, end = text.find("{"), text.rfind("}")
        if 0 <= start < end:
            try:
                found = orjson.loads(text[start : end + 1])
            except orjson.JSONDecodeError:
                return {}
            return found if isinstance(found, dict) else {}
        return {}

    def pair(self, name: str) -> str | None:
        pattern = _PAIR.format(name=re.escape(name).replace("_", r"[_\s-]"))
        found = re.search(pattern, self.whole, re.IGNORECASE)
        return next((group for group in found.groups() if group is not None), None) if found else None

    def text(self) -> str | None:
        if self.quoted:
            return self.quoted.pop(0)
        rest, self.rest = self.rest, ""
        return rest or None

    def number(self) -> str | None:
        return self.numbers.pop(0) if self.numbers else None


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        target = (root.get("$defs") or {}).get(name)
        return target if isinstance(target, Mapping) else {}
    for option in schema.get("anyOf") or []:
        if isinstance(option, Mapping) and option.get("type") != "null":
            return _resolve(option, root)
    return schema


def _number(said: str | None, kind: str) -> int | float | None:
    try:
        return None if said is None else int(float(said)) if kind == "integer" else float(said)
    except (ValueError, OverflowError):
        return None


def _value(schema: Mapping[str, Any], root: Mapping[str, Any], words: _Words, said: str | None, depth: int) -> Any:
    """A value for one property, or None when the message has none."""
    schema = _resolve(schema, root)
    kind = schema.get("type")
    if options := schema.get("enum"):
        text = said or words.whole
        return next((one for one in options if re.search(rf"\b{re.escape(str(one))}\b", text, re.IGNORECASE)), None)
    if "const" in schema:
        return schema["const"]
    if kind in {"integer", "number"}:
        return _number(said if said is not None else words.number(), kind)
    if kind == "boolean":
        found = re.search(r"\b(true|yes|on|false|no|off)\b", said or words.whole, re.IGNORECASE)
        return found.group(1).lower() in {"true", "yes", "on"} if found else None
    if kind == "array":
        return _array(_resolve(schema.get("items") or {}, root), root, words, depth)
    if kind == "object" and depth < 4:
        return _object(schema, root, words, depth + 1) if schema.get("properties") else {}
    return said if said is not None else words.text()


def _array(items: Mapping[str, Any], root: Mapping[str, Any], words: _Words, depth: int) -> list[Any] | None:
    if items.get("type") in {"integer", "number"}:
        numbers, words.numbers = words.numbers, []
        return [_number(one, items["type"]) for one in numbers] or None
    if items.get("type") == "object":
        return [_object(items, root, words, depth + 1)] if depth < 4 else None
    if words.quoted:
        quoted, words.quoted = words.quoted, []
        return quoted
    rest, words.rest = words.rest, ""
    return [part for part in re.split(r"\s*(?:,|;|\band\b)\s*", rest) if part] or None


def _empty(schema: Mapping[str, Any], root: Mapping[str, Any], words: _Words) -> Any:
    """What a required property gets when the message says nothing for it."""
    schema = _resolve(schema, root)
    if schema.get("enum"):
        return schema["enum"][0]
    empties: dict[Any, Any] = {"integer": 0, "number": 0.0, "boolean": False, "array": [], "object": {}}
    return empties.get(schema.get("type"), words.whole.strip())


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], words: _Words, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    required = schema.get("required") or []
    for name, property_schema in (schema.get("properties") or {}).items():
        if name in words.document:
            out[name] = words.document[name]
            continue
        said = words.pair(name)
        if said is None and name not in required:
            continue  # an optional property is filled only when it is named
        value = _value(property_schema, root, words, said, depth)
        if value is not None:
            out[name] = value
        elif name in required:
            out[name] = _empty(property_schema, root, words)
    return out


def fill(schema: Mapping[str, Any], text: str) -> Any:
    """A document for `schema` with what `text` offers: JSON, `name=value`, quoted strings, numbers, then words."""
    if schema.get("type", "object") != "object" and "properties" not in schema:
        words = _Words(text)
        value = _value(schema, schema, words, None, 0)
        return _empty(schema, schema, words) if value is None else value
    return _object(schema, schema, _Words(text), 0)
