"""The JSON Schema of an agent's settings: made by the agent, kept by the ConfigManager, used on every way in.

Rows are text, and an agent may read a text more kindly than a schema can say. So a value is refused here only when it
is sure that the agent would refuse it; the agent itself has the last word.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, get_args

import orjson
from pydantic import BaseModel, BeforeValidator, PlainValidator, WrapValidator
from pydantic_core import PydanticUndefined

from perdure.config.secrets import is_reference

LENIENT: Final = "x-perdure-own-validator"  # the agent's code reads this key in its own way
BOOLEANS: Final = frozenset(["0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"])
LARGEST: Final = 256 * 1024  # bytes of a schema
REMEMBERED: Final = 1000  # unknown keys


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of `model`, with `secret`, `live` and the keys that have validators of their own marked."""
    schema = model.model_json_schema()
    own = _own_validators(model)
    for name, described in schema.get("properties", {}).items():
        if name in own:
            described[LENIENT] = True
        if any(each.get("secret") or each.get("format") == "password" for each in _branches(schema, described)):
            described["secret"] = True
        described.setdefault("live", True)
    return schema


def restart_only(model: type[BaseModel] | None) -> frozenset[str]:
    """The keys that `model` declares as read at the start alone: `json_schema_extra={"live": False}`."""
    fields = {} if model is None else model.model_fields
    return frozenset(
        key
        for key, field in fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("live") is False
    )


def hash_of_schema(schema: Mapping[str, Any]) -> str:
    """The same for equal schemas: 32 hex digits."""
    return hashlib.sha256(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


class TextSchema:
    """A schema that judges rows."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        properties = schema.get("properties", {})
        self._properties: dict[str, Mapping[str, Any]] = {
            key: described for key, described in properties.items() if isinstance(described, dict)
        }
        self._meant: dict[str, str | None] = {}  # what was asked already: looking for near keys is dear
        self.secrets = frozenset(key for key, described in self._properties.items() if described.get("secret"))

    def knows(self, key: str) -> bool:
        """Whether the agent declares `key`."""
        return key in self._properties

    @property
    def keys(self) -> frozenset[str]:
        """The declared keys."""
        return frozenset(self._properties)

    def defaults(self) -> dict[str, Any]:
        """The default of each declared key that has one."""
        return {key: described["default"] for key, described in self._properties.items() if "default" in described}

    def refusal(self, key: str, text: str) -> str | None:
        """Why the agent would surely refuse this value, None when it may be good."""
        described = self._properties.get(key)
        if described is None:
            return None
        if key in self.secrets:
            good = not text or is_reference(text)
            return None if good else "must be a reference: secret://env/NAME or secret://file/PATH"
        if described.get(LENIENT):
            return None
        return _refusal(self._schema, described, text, depth=0)

    def meant(self, key: str) -> str | None:
        """The declared key that an unknown one was probably meant to be."""
        if key in self._properties:
            return None
        if key not in self._meant:
            if len(self._meant) >= REMEMBERED:
                self._meant.clear()
            close = get_close_matches(key, self._properties, n=1, cutoff=0.75)
            self._meant[key] = close[0] if close else None
        return self._meant[key]


def _refusal(schema: Mapping[str, Any], rule: Mapping[str, Any], text: str, *, depth: int) -> str | None:
    rule = _resolved(schema, rule)
    choices = rule.get("anyOf") or rule.get("oneOf")
    if choices and depth < 5:
        refusals = [_refusal(schema, choice, text, depth=depth + 1) for choice in choices]
        return None if None in refusals else refusals[0]
    kind = rule.get("type")
    if "enum" in rule or "const" in rule:
        allowed = [str(value) for value in rule.get("enum", [rule.get("const")])]
        return None if text.strip() in allowed else f"must be one of {', '.join(allowed)}"
    if kind in ("integer", "number"):
        return _number(rule, text, whole=kind == "integer")
    if kind == "boolean":
        return None if text.strip().lower() in BOOLEANS else "must be true or false"
    if kind == "string":
        return _string(rule, text)
    if kind == "null":
        return None if text.strip() == "null" else "must be null"
    if kind in ("array", "object"):
        return _container(rule, text, list if kind == "array" else dict)
    return None


def _number(rule: Mapping[str, Any], text: str, *, whole: bool) -> str | None:
    wanted = "a whole number" if whole else "a number"
    try:
        number = float(text)
    except ValueError:
        return f"must be {wanted}"
    if whole and not number.is_integer():
        return f"must be {wanted}"
    low, above = rule.get("minimum"), rule.get("exclusiveMinimum")
    high, below = rule.get("maximum"), rule.get("exclusiveMaximum")
    bounded = (low, above, high, below) != (None, None, None, None)
    if math.isnan(number):
        return f"must be {wanted}" if bounded else None
    if low is not None and number < low:
        return f"must be at least {low}"
    if above is not None and number <= above:
        return f"must be more than {above}"
    if high is not None and number > high:
        return f"must be at most {high}"
    if below is not None and number >= below:
        return f"must be less than {below}"
    return None


def _string(rule: Mapping[str, Any], text: str) -> str | None:
    if "format" in rule or "contentMediaType" in rule:
        return None
    stripped = text.strip()  # the agent may strip; then that is what counts
    if len(text) < rule.get("minLength", 0):
        return f"must have at least {rule['minLength']} characters"
    if "maxLength" in rule and len(stripped) > rule["maxLength"]:
        return f"must have at most {rule['maxLength']} characters"
    if "pattern" in rule:
        try:
            pattern = re.compile(rule["pattern"])
        except re.error:
            return None  # Rust's regular expressions know more than ours
        if not pattern.search(text) and not pattern.search(stripped):
            return f"must match {rule['pattern']}"
    return None


def _container(rule: Mapping[str, Any], text: str, kind: type[Any]) -> str | None:
    wanted = "a JSON list" if kind is list else "a JSON object"
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return f"must be {wanted}"
    if not isinstance(value, kind):
        return f"must be {wanted}"
    texts_only = kind is list and rule.get("items") == {"type": "string"}
    if texts_only and not all(isinstance(each, str) for each in value):
        return "must be a JSON list of texts"
    return None


def _resolved(schema: Mapping[str, Any], rule: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = rule.get("$ref")
    if not isinstance(reference, str):
        return rule
    found = schema.get("$defs", {}).get(reference.rpartition("/")[2], {})
    return found if isinstance(found, dict) and "$ref" not in found else {}


def _branches(schema: Mapping[str, Any], rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    resolved = _resolved(schema, rule)
    yield resolved
    if resolved is not rule:
        yield rule
    for choice in resolved.get("anyOf", ()):
        yield _resolved(schema, choice)
        yield choice


def _own_validators(model: type[BaseModel]) -> set[str]:
    """The fields whose text the agent's code may turn into anything before it is checked."""
    decorators = model.__pydantic_decorators__
    if any(each.info.mode != "after" for each in decorators.model_validators.values()):
        return set(model.model_fields)
    named = {
        field
        for each in decorators.field_validators.values()
        if each.info.mode != "after"
        for field in each.info.fields
    }
    if "*" in named:
        return set(model.model_fields)
    annotated = {
        name for name, field in model.model_fields.items() if any(map(_reads, (*field.metadata, field.annotation)))
    }
    return (named | annotated) & set(model.model_fields)


def _reads(part: Any) -> bool:
    if isinstance(part, (BeforeValidator, PlainValidator, WrapValidator)):
        return getattr(part, "json_schema_input_type", PydanticUndefined) in (PydanticUndefined, Any)
    return any(_reads(each) for each in (*get_args(part), *getattr(part, "__metadata__", ())))
