"""From a function's type hints and docstring to a JSON Schema, and from a model's JSON to the function's arguments."""

from __future__ import annotations

import inspect
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from perdure.engine import Context, StepContext
from perdure.errors import PerdureError
from perdure.messages import misfit

_PARAM_LINE = re.compile(r"^(?P<name>\*{0,2}\w+)\s*(?:\([^)]*\))?\s*:\s*(?P<text>.+)$")
_SPHINX = re.compile(r"^\s*:param\s+(?:[\w.\[\], |]+\s+)?(?P<name>\w+)\s*:\s*(?P<text>.+)$", re.MULTILINE)
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Example|Examples|Note|Notes)\s*:\s*$")

Injected = Literal["ctx", "step"]


class ToolArgumentsError(PerdureError):
    """The model's arguments do not fit the tool; the text is written for the model."""


@dataclass(frozen=True)
class Signature(ABC):
    """What the model is told of a tool, and how its arguments get back; `injected` are the engine's to fill."""

    description: str
    parameters: dict[str, Any]
    injected: Mapping[str, Injected]

    @abstractmethod
    def bind(self, arguments: str) -> dict[str, Any]:
        """The keyword arguments in `arguments`, a JSON object as text. Raises `ToolArgumentsError`."""


@dataclass(frozen=True)
class FunctionSignature(Signature):
    """The signature of a Python function; `fields` are those of `model` by the function's parameters."""

    fields: Mapping[str, str]
    model: type[BaseModel]

    def bind(self, arguments: str) -> dict[str, Any]:
        """The keyword arguments, validated and typed."""
        document = json_object(arguments)
        try:
            filled = self.model.model_validate(document)
        except ValidationError as error:
            raise ToolArgumentsError(f"the arguments do not fit: {misfit(error, 'arguments', most=10)}") from None
        return {name: getattr(filled, field) for field, name in self.fields.items()}


@dataclass(frozen=True)
class SchemaSignature(Signature):
    """The signature of a tool that somebody else described by a JSON Schema, and will check himself."""

    def bind(self, arguments: str) -> dict[str, Any]:
        """`{"arguments": object}`; only what is missing or too much is found here."""
        document = json_object(arguments)
        missing = [name for name in self.parameters.get("required") or [] if name not in document]
        if missing:
            raise ToolArgumentsError(f"the arguments do not fit: {', '.join(missing)}: Field required")
        known = self.parameters.get("properties") or {}
        extra = sorted(set(document) - set(known)) if self.parameters.get("additionalProperties") is False else []
        if extra:
            raise ToolArgumentsError(f"the arguments do not fit: {', '.join(extra)}: Extra inputs are not permitted")
        return {"arguments": document}


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a model's text. Raises `ToolArgumentsError`."""
    try:
        document = orjson.loads(text or "{}")
    except orjson.JSONDecodeError as error:
        raise ToolArgumentsError(f"the arguments are not valid JSON ({error}); send one JSON object") from None
    if not isinstance(document, dict):
        raise ToolArgumentsError("the arguments must be one JSON object")
    return document


def parse_docstring(text: str | None) -> tuple[str, dict[str, str]]:
    """The description, and what is said of each parameter (Google's `Args:` or Sphinx's `:param x:`)."""
    text = inspect.cleandoc(text or "")
    told = {found["name"]: found["text"].strip() for found in _SPHINX.finditer(text)}
    kept: list[str] = []
    section: str | None = None
    last: str | None = None
    for line in text.splitlines():
        if header := _SECTION.match(line):
            section, last = header.group(1), None
        elif section is None:
            if not line.lstrip().startswith(":"):
                kept.append(line)
        elif section in {"Args", "Arguments", "Parameters"}:
            if found := _PARAM_LINE.match(line.strip()):
                last = found["name"].lstrip("*")
                told[last] = found["text"].strip()
            elif last and line.strip():
                told[last] += f" {line.strip()}"
    return "\n".join(kept).strip(), told


def _injected(hint: Any) -> Injected | None:
    """Whether a parameter is the engine's to fill; its annotation may be text that only type checkers resolve."""
    if isinstance(hint, str):
        plain = hint.replace(" ", "").removesuffix("|None").rpartition(".")[2]
        return "ctx" if plain == "Context" else "step" if plain == "StepContext" else None
    for option in get_args(hint) if get_origin(hint) in {typing.Union, types.UnionType} else (hint,):
        if isinstance(option, type) and issubclass(option, Context):
            return "ctx"
        if isinstance(option, type) and issubclass(option, StepContext):
            return "step"
    return None


def _enclosed(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a function takes from the functions around it, as far as they have a value yet."""
    cells = getattr(function, "__closure__", None) or ()
    names = function.__code__.co_freevars if cells else ()
    out: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        with suppress(ValueError):  # an empty cell: assigned later
            out[name] = cell.cell_contents
    return out


def _resolve(hint: Any, function: Callable[..., Any], names: Mapping[str, Any], blame: str) -> Any:
    if not isinstance(hint, str):
        return hint
    scope = dict(names) | _enclosed(function)
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__={"hint": hint}),
            globalns=getattr(function, "__globals__", {}),
            localns=scope,
            include_extras=True,
        )["hint"]
    except Exception as error:
        raise TypeError(f"{blame}: the hint {hint!r} cannot be resolved: {error}") from error


def read_signature(function: Callable[..., Any], name: str, local_names: Mapping[str, Any]) -> FunctionSignature:
    """Describe `function` for a model. Raises `TypeError` naming the tool and the parameter that has no schema."""
    description, told = parse_docstring(function.__doc__)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    injected: dict[str, Injected] = {}
    for parameter in inspect.signature(function).parameters.values():
        blame = f"tool {name!r}, parameter {parameter.name!r}"
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY}:
            raise TypeError(f"{blame}: a model names its arguments one by one; use an ordinary parameter")
        hint = parameter.annotation
        if kind := _injected(hint):
            injected[parameter.name] = kind
            continue
        if hint is parameter.empty:
            raise TypeError(f"{blame} has no type hint; add one, for example `{parameter.name}: str`")
        hint = _resolve(hint, function, local_names, blame)
        if kind := _injected(hint):
            injected[parameter.name] = kind
            continue
        try:
            TypeAdapter(hint).json_schema()
        except (PydanticUserError, TypeError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise TypeError(
                f"{blame}: {hint!r} has no JSON Schema ({said}); use plain data or a pydantic model"
            ) from error
        # fields have names of their own: a parameter called `schema` or `copy` would hide pydantic's method
        field = f"field_{len(fields)}"
        about = Field(alias=parameter.name, description=told.get(parameter.name))
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[field] = (Annotated[hint, about], default)
        names[field] = parameter.name
    model = create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid"), **fields)
    parameters = _schema_of(model)
    return FunctionSignature(description, parameters, injected, names, model)


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The model's schema without pydantic's made-up titles, which only cost tokens."""
    schema = model.model_json_schema(by_alias=True)
    properties = {
        key: {k: v for k, v in value.items() if k != "title"} for key, value in schema.get("properties", {}).items()
    }
    definitions = schema.get("$defs")
    out: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if schema.get("required"):
        out["required"] = schema["required"]
    if definitions:
        out["$defs"] = definitions
    return out
