"""Which keys of Redis are configuration: `config:<agent>:<key>`, and `config:<agent>` for a batch of keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import orjson

from config_manager.requests import KEY, LONGEST_KEY, configurations
from perdure.errors import InvalidRequest

LAYER: Final = re.compile(r"\*|[a-z0-9][a-z0-9_-]{0,62}(@[A-Za-z0-9._-]{1,128})?")
OWN: Final = "perdure:"  # keys of the platform itself, which are never configuration
GLOB: Final = re.compile(r"([*?\[\]\\^])")


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """A row of the table."""

    layer: str
    key: str


@dataclass(frozen=True, slots=True)
class Batch:
    """A key of Redis whose value is a JSON object: settings of one layer."""

    layer: str


class RedisNames:
    """The names by PERDURE_CONFIG_REDIS_PREFIX and PERDURE_CONFIG_REDIS_AGENT.

    Without an agent, `<prefix><agent>:<key>` is a setting and `<prefix><agent>` a batch. With one, `<prefix><key>` is a
    setting of that agent and `<prefix><agent>` its batch; where the prefix is empty too, the database has keys of
    others, so only keys are read that `declared()` names. All of it is inside `space`, what the keys of a namespace
    begin with.
    """

    def __init__(
        self, prefix: str, agent: str | None, declared: Callable[[], Collection[str]], *, space: str = ""
    ) -> None:
        self._prefix = f"{space}{prefix}"
        self._space = space
        self._own = f"{space}{OWN}"
        self._only_declared = agent is not None and not prefix
        self._agent = agent
        self._declared = declared

    @property
    def pattern(self) -> str:
        """A glob that all of them match."""
        return GLOB.sub(r"\\\1", self._prefix) + "*"

    def own_key(self, what: str) -> str:
        """A key of ours about these names."""
        return f"{self._own}config:{what}:{self._prefix.removeprefix(self._space)}{self._agent or ''}"

    @property
    def fixed(self) -> list[str] | None:
        """All keys of Redis that may be configuration, where they are few and known: then nothing is scanned."""
        if self._agent is None or not self._only_declared:
            return None
        return [f"{self._prefix}{each}" for each in (self._agent, *self._declared())]

    def key_of(self, name: Name) -> str | None:
        """The key of Redis for a row; None for a row that Redis has no part in."""
        if self._agent is None:
            return f"{self._prefix}{name.layer}:{name.key}"
        return f"{self._prefix}{name.key}" if name.layer == self._agent and name.key != self._agent else None

    def key_of_batch(self, batch: Batch) -> str:
        """The key of Redis for a batch."""
        return f"{self._prefix}{batch.layer}"

    def read(self, said: str) -> Name | Batch | None:
        """What a key of Redis is; None when it is none of ours. Raises `ValueError` that says how it is written."""
        if said.startswith(self._own) or not said.startswith(self._prefix):
            return None
        rest = said[len(self._prefix) :]
        if self._agent is not None:
            if rest == self._agent:
                return Batch(self._agent)
            if self._only_declared and rest not in self._declared():
                return None
            return Name(self._agent, _usable(rest))
        layer, colon, key = rest.partition(":")
        if not LAYER.fullmatch(layer):
            raise ValueError(
                f"{layer[:80]!r} is no agent: write {self._prefix}<agent>:<key>, "
                "the agent as [a-z0-9][a-z0-9_-]{0,62}, the same with @instance, or *"
            )
        return Name(layer, _usable(key)) if colon else Batch(layer)


def _usable(key: str) -> str:
    if len(key) > LONGEST_KEY or not KEY.fullmatch(key):
        raise ValueError(f"a key has 1 to {LONGEST_KEY} printable characters, with no space at either end")
    return key


def read_batch(value: bytes) -> tuple[dict[str, str], list[str]]:
    """The rows to put and the keys to take away that a batch asks for. Raises `ValueError` when it is none."""
    try:
        return configurations({"configurations": orjson.loads(value)})
    except orjson.JSONDecodeError:
        raise ValueError("a batch is a JSON object of keys and values, and this is not JSON") from None
    except InvalidRequest as error:
        raise ValueError(f"a batch is a JSON object of keys and values: {error.message}") from None
