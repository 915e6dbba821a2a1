"""How tasks, arguments and results travel: as JSON text, typed on the way back by the return annotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from perdure.messages import misfit

_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_NON_STR_KEYS
_HASH_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS
_SCALAR_KINDS: Final = frozenset((str, int, bool, type(None)))
_SCALARS = (str, int, bool, type(None))
SHOWN_ARGUMENTS: Final = 2048  # bytes of a step's arguments that are kept to be looked at


def _portable(value: Any) -> Any:
    """What orjson does not know by itself, in a form that it does."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | PurePath | UUID):
        return str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=lambda item: orjson.dumps(item, default=_portable, option=_OPTIONS))
    raise TypeError(f"{type(value).__name__} cannot travel as JSON")


def encode(value: Any, *, what: str) -> str:
    """`value` as JSON text. Raises `TypeError` naming the field of `what` that cannot travel."""
    try:
        text = orjson.dumps(value, default=_portable, option=_OPTIONS).decode()
    except (TypeError, RecursionError, UnicodeError) as error:
        raise TypeError(_blame(value, what) or f"{what} cannot travel as JSON: {error}") from error
    _refuse_nan(value, text, what)
    return text


def decode(text: str | bytes | None) -> Any:
    """The JSON value of `text`; `None` for no text."""
    return None if text is None else orjson.loads(text)


def _refuse_nan(value: Any, text: str, what: str) -> None:
    """NaN is written as null, which would come back as `None`."""
    if "null" in text and not _finite(value) and (path := _not_finite(value, what)):
        raise TypeError(f"{path}, which JSON cannot carry")


def _finite(value: Any, depth: int = 0) -> bool:
    """Whether there is surely nothing to find for `_not_finite`, which names each thing that it looks at."""
    kind = type(value)
    if kind in _SCALAR_KINDS:
        return True
    if kind is float:
        return math.isfinite(value)
    if depth > 200:
        return False
    if kind is dict:
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    elif is_dataclass(kind):
        items = (getattr(value, name, None) for name in kind.__dataclass_fields__)
    else:
        return False
    return all(_finite(item, depth + 1) for item in items)


def _not_finite(value: Any, path: str, depth: int = 0) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}"
    if depth > 200:
        return None
    return next((said for name, item in _parts(value, path) if (said := _not_finite(item, name, depth + 1))), None)


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        return [(f"{path}.{name}", item) for name, item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f"{path}.{field.name}", getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, Mapping):
        return [(f"{path}.{key}", item) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return []


def _blame(value: Any, path: str, depth: int = 0) -> str | None:
    """A sentence that names the first field that cannot travel, or `None`."""
    if depth > 200:
        return f"{path} is nested too deeply to travel as JSON (does it hold itself?)"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}, which JSON cannot carry"
    if isinstance(value, int):
        fits = -(2**63) <= value < 2**64
        return None if fits else f"{path} is an integer of more than 64 bits; pass it as text"
    if isinstance(value, str):
        return None if value.isascii() or _encodable(value) else f"{path} is text that is not valid Unicode"
    if value is None or isinstance(value, bool | date | time | timedelta | Decimal | UUID | PurePath | Enum):
        return None
    if isinstance(value, BaseModel):
        return None
    if not isinstance(value, Mapping | list | tuple | set | frozenset) and (
        not is_dataclass(value) or isinstance(value, type)
    ):
        return (
            f"{path} is a {type(value).__name__}, which cannot travel as JSON; "
            "return plain data, a dataclass or a pydantic model"
        )
    return next((said for name, item in _parts(value, path) if (said := _blame(item, name, depth + 1))), None)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ResultType:
    """The type that a step, a workflow or a child declares for its result, ready to encode and decode it."""

    __slots__ = ("_adapter", "plain")

    def __init__(self, annotation: Any) -> None:
        plain = annotation in (None, Any, str, int, bool, dict, list, type(None))
        self._adapter: TypeAdapter[Any] | None = None if plain else TypeAdapter(annotation)
        self.plain = plain  # whatever JSON says is it

    def encode(self, value: Any, *, what: str) -> str:
        """`value` as JSON text. Raises `TypeError` naming the field that cannot travel."""
        if self._adapter is None or isinstance(value, _SCALARS):
            return encode(value, what=what)
        if isinstance(value, float | list | dict):
            return encode(value, what=what)  # plain data: no model in between can lose a field
        try:
            text = self._adapter.dump_json(value, warnings="error").decode()
        except (ValueError, TypeError):
            return encode(value, what=what)
        _refuse_nan(value, text, what)
        return text

    def decode(self, text: str | None, *, what: str) -> Any:
        """The value of `text` in the declared type. Raises `TypeError` when it does not fit."""
        if text is None:
            return None
        if self._adapter is None:
            return orjson.loads(text)
        try:
            return self._adapter.validate_json(text, by_alias=True, by_name=True)  # it was written by either
        except ValidationError as error:
            raise TypeError(f"{what} does not fit its annotation: {misfit(error, 'the value')}") from error


ANY_RESULT = ResultType(None)


def _hashable(value: Any) -> Any:
    """Arguments only take part in a hash, so what cannot travel stands for itself by its type."""
    try:
        return _portable(value)
    except (TypeError, ValueError):  # pydantic's serialization errors are ValueErrors
        return f"<{type(value).__module__}.{type(value).__qualname__}>"


def identity(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The hash that stands for a step's name and arguments in the journal (BLAKE2b, 96 bits, hex)."""
    try:
        text = orjson.dumps((name, args, kwargs), default=_hashable, option=_HASH_OPTIONS)
    except (TypeError, UnicodeError):
        text = repr(_canonical((name, args, kwargs))).encode("utf-8", "backslashreplace")
    return blake2b(text, digest_size=12).hexdigest()


def shown_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """What a step was called with, as JSON text for people; its size alone when that is long, None for nothing."""
    if not args and not kwargs:
        return None
    said = {"args": args} if not kwargs else {"args": args, "kwargs": kwargs} if args else {"kwargs": kwargs}
    try:
        text = orjson.dumps(said, default=_hashable, option=_HASH_OPTIONS)
    except (TypeError, UnicodeError):  # nobody needs it but to look at
        return None
    return text.decode() if len(text) <= SHOWN_ARGUMENTS else f'{{"bytes":{len(text)}}}'


def _canonical(value: Any, depth: int = 0) -> Any:
    """What `repr` writes the same way in every process: no addresses, no order of a set."""
    if value is None or isinstance(value, str | int | float | bytes) or depth > 100:
        return value if depth <= 100 else "<deep>"
    if isinstance(value, set | frozenset):
        return sorted(repr(_canonical(item, depth + 1)) for item in value)
    if isinstance(value, list | tuple):
        return [_canonical(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return sorted((repr(_canonical(key, depth + 1)), _canonical(item, depth + 1)) for key, item in value.items())
    found = _hashable(value)
    return found if isinstance(found, str) else _canonical(found, depth + 1)


def short_hash(*parts: str) -> str:
    """A stable id made of `parts` (BLAKE2b, 80 bits, hex)."""
    return blake2b("\x1f".join(parts).encode(), digest_size=10).hexdigest()
