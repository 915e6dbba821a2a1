"""From text to types: rows hold text, settings have types, and a bad text must never become a behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of validating a set of rows.

    `values` are the rows that are good now, `errors` says of each bad key why, `settings` is the model built from
    `values` (None without a model), `typed` the declared keys that have a row, by their type.
    """

    values: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    settings: BaseModel | None = None
    typed: dict[str, Any] = field(default_factory=dict)


def check(model: type[BaseModel] | None, values: Mapping[str, str], last_good: Mapping[str, str]) -> Checked:
    """Validate `values` as a whole. A bad key is held: it has its value of `last_good`, or none.

    When the model refuses the combination without naming a key, every declared key that differs from `last_good` is
    held. Raises `ValueError` when no values will do: a required field that never had a row.
    """
    if model is None:
        return Checked(dict(values))
    errors: dict[str, str] = {}
    undeclared = {key: text for key, text in values.items() if key not in model.model_fields}
    given = {key: text for key, text in values.items() if key in model.model_fields}
    as_json: dict[str, str] = {}  # keys whose text is tried as JSON, and why it did not do as text
    while True:
        try:
            settings = model.model_validate(_candidates(given, as_json))
        except ValidationError as error:
            wrong = _by_key(error)
            if not wrong:
                return _hold_all(model, values, last_good, _why(error.errors()[0]))
            as_text = {key: why for key, why in wrong.items() if key not in as_json and _is_json(given.get(key))}
            if as_text:
                as_json |= as_text
                continue
            for key, why in wrong.items():
                said = as_json.pop(key, why)
                _hold(model, key, given, last_good, first_time=key not in errors)
                errors.setdefault(key, why if _is_container(values.get(key)) else said)
        else:
            typed = {key: getattr(settings, key) for key in given}
            return Checked(undeclared | given, errors, settings, typed)


def _candidates(given: Mapping[str, str], as_json: Mapping[str, str]) -> dict[str, Any]:
    return {key: orjson.loads(text) if key in as_json else text for key, text in given.items()}


def _hold(
    model: type[BaseModel], key: str, given: dict[str, str], last_good: Mapping[str, str], *, first_time: bool
) -> None:
    if first_time and last_good.get(key) not in (None, given.get(key)):
        given[key] = last_good[key]
    elif key in given:  # what was good once is bad too (the model is another one by now), or nothing ever was
        del given[key]
    else:
        raise ValueError(f"{model.__name__} needs a value for {key!r}, and there is none: write one, or give a default")


def _hold_all(model: type[BaseModel], values: Mapping[str, str], last_good: Mapping[str, str], why: str) -> Checked:
    declared = {*values, *last_good} & model.model_fields.keys()
    changed = {key for key in declared if values.get(key) != last_good.get(key)}
    if not changed:
        raise ValueError(f"{model.__name__} refuses the values that it had: {why}")
    kept = {key: text for key, text in values.items() if key not in changed}
    kept |= {key: last_good[key] for key in changed if key in last_good}
    again = check(model, kept, kept)
    return Checked(again.values, {**dict.fromkeys(sorted(changed), why), **again.errors}, again.settings, again.typed)


def _by_key(error: ValidationError) -> dict[str, str]:
    """Why, for each key that the model names."""
    wrong: dict[str, str] = {}
    for each in error.errors(include_url=False, include_input=False):
        if each["loc"]:
            wrong.setdefault(str(each["loc"][0]), _why(each))
    return wrong


def _why(error: Any) -> str:
    """Pydantic's sentence, which never quotes the value, and where inside the value it applies."""
    where = ".".join(str(part) for part in error["loc"][1:])
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"at {where}: {said}" if where else said


def _is_json(text: str | None) -> bool:
    """Whether `text` is a list, an object or null in JSON: what pydantic does not make of a text itself."""
    if text is None:
        return False
    try:
        return isinstance(orjson.loads(text), (list, dict, NoneType))
    except orjson.JSONDecodeError:
        return False


def _is_container(text: str | None) -> bool:
    return text is not None and text.lstrip()[:1] in ("[", "{")


def convert(text: str, kind: type[Any]) -> Any:
    """`text` as a `kind` (int, float, bool, list, dict, …). Raises `ValueError` when it is none."""
    if kind is str:
        return text
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        first = _why(error.errors()[0])
    try:
        return adapter.validate_json(text)
    except ValidationError:
        if kind is list:
            return [part.strip() for part in text.split(",") if part.strip()]
        raise ValueError(first) from None
