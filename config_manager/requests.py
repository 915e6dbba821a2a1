"""What callers may ask: subjects and bodies checked, with errors that name the field and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from config_manager.rollout import Plan
from perdure import subjects
from perdure.bus.service import Request
from perdure.config.schema import LARGEST
from perdure.errors import InvalidRequest, TooLarge
from perdure.subjects import GLOBAL_LAYER

GLOBAL_TOKENS: Final = frozenset({GLOBAL_LAYER, "_global"})  # a `*` in a subject is refused by pedantic connections
INSTANCE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
MOST_KEYS: Final = 1000
LONGEST_KEY: Final = 255
KEY: Final = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?")
HIGHEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Target:
    """Whose configuration: an agent or `*`, perhaps one instance of the agent."""

    agent: str
    instance: str | None = None

    @property
    def layer(self) -> str:
        """The `agent_name` of its own rows."""
        return f"{self.agent}@{self.instance}" if self.instance else self.agent


def body_of(request: Request, *known: str) -> dict[str, Any]:
    """The body, with no field but `known`, `agent_name` and `instance_id`."""
    body = request.json()
    allowed = {"agent_name", "instance_id", *known}
    unknown = sorted(body.keys() - allowed)
    if unknown:
        raise InvalidRequest(f"unknown field {unknown[0]!r}; the fields here are {', '.join(sorted(allowed))}")
    return body


def target_of(request: Request, body: Mapping[str, Any]) -> Target:
    """The target by the subject's last token and the body, which must not contradict each other."""
    token = request.subject.split(".", 2)[2] if request.subject.count(".") > 1 else None
    asked = body.get("agent_name")
    if token is None and asked is None:
        raise InvalidRequest("agent_name is missing: name it in the subject or in the body")
    instance = body.get("instance_id")
    if instance is not None and (not isinstance(instance, str) or not INSTANCE.fullmatch(instance)):
        raise InvalidRequest("instance_id is not usable: it must be text that matches [A-Za-z0-9._-]{1,128}")
    by_subject = _target(token, instance) if token is not None else None
    by_body = _target(asked, instance) if asked is not None else None
    if by_subject and by_body and by_subject.agent != by_body.agent:
        raise InvalidRequest(
            f"agent_name {by_body.agent!r} in the body, but {by_subject.agent!r} in the subject: name the same agent"
        )
    chosen = by_subject if by_subject and (by_subject.instance or not by_body) else by_body
    assert chosen is not None  # noqa: S101 - one of both is there, for the type checker
    if chosen.agent == GLOBAL_LAYER and chosen.instance:
        raise InvalidRequest("the layer of all agents has no instances: leave instance_id out")
    return chosen


def rollout_plan(body: Mapping[str, Any], changed_by: str) -> Plan:
    """What a rollout changes, on how many instances first, and for how long it bakes there."""
    changes, deletes = configurations(body)
    if deletes:
        raise InvalidRequest(f"a rollout cannot take keys away ({deletes[0]!r} is null): give it a value")
    instances = whole_number(body, "instances", default=None, lowest=1, highest=10_000)
    share = _number(body, "share", default=None, lowest=0.0, highest=1.0)
    if (instances is None) == (share is None):
        raise InvalidRequest('say how many try it first: "instances": 1, or "share": 0.1')
    bake = _number(body, "bake_seconds", default=60.0, lowest=0.0, highest=7 * 86_400.0)
    failures = whole_number(body, "max_failures", default=0, lowest=0, highest=1_000_000)
    return Plan(
        changes,
        bake_seconds=60.0 if bake is None else bake,
        max_failures=failures or 0,
        changed_by=changed_by,
        instances=instances,
        share=share,
    )


def _number(
    body: Mapping[str, Any], field: str, *, default: float | None, lowest: float, highest: float
) -> float | None:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
        raise InvalidRequest(f"{field} must be a number from {lowest:g} to {highest:g}")
    return float(value)


def schema_in(body: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema of settings: an object whose `properties` describe the keys."""
    schema = body.get("schema")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or not isinstance(properties, dict):
        raise InvalidRequest("schema must be a JSON Schema with `properties`, as pydantic makes it")
    wrong = [key for key, described in properties.items() if not isinstance(described, dict)]
    if wrong:
        raise InvalidRequest(f"schema.properties.{wrong[0]} must be an object")
    size = len(orjson.dumps(schema))
    if size > LARGEST:
        raise TooLarge(f"schema has {size} bytes; at most {LARGEST} are kept")
    return schema


def _target(name: Any, instance: str | None) -> Target:
    if not isinstance(name, str):
        raise InvalidRequest("agent_name must be text")
    if name in GLOBAL_TOKENS:
        return Target(GLOBAL_LAYER, instance)
    agent, _, own = name.partition("@")
    if own and not INSTANCE.fullmatch(own):
        raise InvalidRequest(f"the instance in {name!r} is not usable: it must match [A-Za-z0-9._-]{{1,128}}")
    try:
        return Target(subjects.agent_name(agent), own or instance)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def whole_number(body: Mapping[str, Any], field: str, *, default: int | None, lowest: int, highest: int) -> int | None:
    """A whole number within bounds, or `default` when the field is absent or null."""
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidRequest(f"{field} must be a whole number from {lowest} to {highest}")
    return value


def flag(body: Mapping[str, Any], field: str) -> bool:
    """True or false; absent or null is false."""
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{field} must be true or false")
    return bool(value)


def text(body: Mapping[str, Any], field: str, *, longest: int) -> str | None:
    """A text without NUL of at most `longest` characters, or None when the field is absent, null or empty."""
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > longest or "\x00" in value:
        raise InvalidRequest(f"{field} must be text of at most {longest} characters, without NUL")
    return value or None


def configurations(body: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The rows to put, and the keys to take away (those with null).

    A text is stored as it is; a number, boolean, list or object as its JSON text.
    """
    given = body.get("configurations")
    if not isinstance(given, dict) or not given:
        raise InvalidRequest('configurations must be an object of at least one key: {"configurations": {"key": value}}')
    if len(given) > MOST_KEYS:
        raise InvalidRequest(f"configurations has {len(given)} keys; at most {MOST_KEYS} go in one request")
    puts: dict[str, str] = {}
    deletes: list[str] = []
    for key, value in given.items():
        if len(key) > LONGEST_KEY or not KEY.fullmatch(key):
            raise InvalidRequest(
                f"key {key[:80]!r} in configurations is not usable: "
                f"1 to {LONGEST_KEY} printable characters, with no space at either end"
            )
        if value is None:
            deletes.append(key)
            continue
        stored = value if isinstance(value, str) else orjson.dumps(value).decode()
        if "\x00" in stored:
            raise InvalidRequest(f"the value of {key!r} has a NUL character, which Postgres cannot store: take it out")
        puts[key] = stored
    return puts, deletes
