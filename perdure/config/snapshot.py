"""One immutable snapshot of an agent's configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import orjson
import structlog
from pydantic import BaseModel

from perdure.config.values import Checked, check, convert

_MISSING: Final[Any] = object()
_CALLERS_DEFAULT: Final[Any] = object()  # kept in place of a value: whatever default the caller gives

log = structlog.get_logger()


def _none() -> Mapping[str, Any]:
    return MappingProxyType({})


def hash_of(values: Mapping[str, str]) -> str:
    """A hash of rows that is the same in every process: 32 hex digits."""
    return hashlib.sha256(orjson.dumps(dict(values), option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


@dataclass(frozen=True, slots=True, eq=False)
class AgentConfig:
    """What an agent's settings are at one revision: whole, validated, and never changed.

    `values` are the good rows as text, `held` says of each key that is held at its last good value why, `hash` is
    that of `values`, `settings` the agent's `Settings` built from them (None when it declares none), `stale` whether
    this is what an earlier process knew, because no ConfigManager has answered yet.
    """

    agent_name: str
    revision: int
    values: Mapping[str, str]
    hash: str
    held: Mapping[str, str] = field(default_factory=_none)
    settings: BaseModel | None = None
    settings_model: type[BaseModel] | None = None
    stale: bool = False
    _typed: Mapping[str, Any] = field(default_factory=_none)
    _converted: dict[tuple[str, type[Any]], Any] = field(default_factory=dict)

    @classmethod
    def from_row(
        cls,
        values: Mapping[str, str],
        *,
        agent_name: str,
        revision: int = 0,
        settings_model: type[BaseModel] | None = None,
        last_good: Mapping[str, str] | None = None,
        held: Mapping[str, str] | None = None,
        stale: bool = False,
    ) -> AgentConfig:
        """Build a snapshot from rows; a bad key is held at its value of `last_good`, or left out.

        `held` are keys for which `values` has an older value already, and why.

        Raises `ValueError` when `settings_model` cannot be built at all: a field without a default and without a row.
        """
        checked: Checked = check(settings_model, values, last_good or {})
        return cls(
            agent_name=agent_name,
            revision=revision,
            values=MappingProxyType(checked.values),
            hash=hash_of(checked.values),
            held=MappingProxyType({**(held or {}), **checked.errors}),
            settings=checked.settings,
            settings_model=settings_model,
            stale=stale,
            _typed=MappingProxyType(checked.typed),
        )

    def get_setting(self, key: str, default: Any = None) -> Any:
        """The setting `key`: by the type declared in the agent's `Settings`, else by `type(default)`, else as text.

        A key without a row is `default`, or the declared default when that is None. A text that does not convert is
        `default`, and one warning is logged.
        """
        value = self._typed.get(key, _MISSING)
        if value is not _MISSING:
            return value
        value = self._converted.get((key, default.__class__), _MISSING)
        if value is not _MISSING:
            return value if value is not _CALLERS_DEFAULT else default
        return self._first_get(key, default)

    def typed(self) -> dict[str, Any]:
        """All settings: the declared ones by their type, those with a default too, the others as text."""
        declared = {key: getattr(self.settings, key) for key in self._fields()}
        return {**self.values, **{key: value for key, value in declared.items() if value is not None}}

    def changed_keys(self, other: AgentConfig) -> tuple[str, ...]:
        """The keys whose values differ between the two, sorted."""
        keys = {*self.values, *other.values}
        return tuple(sorted(key for key in keys if self.values.get(key) != other.values.get(key)))

    def at(self, revision: int, *, stale: bool = False) -> AgentConfig:
        """The same values, found unchanged at another revision."""
        return replace(self, revision=revision, stale=stale)

    def _fields(self) -> Iterator[str]:
        return iter(self.settings_model.model_fields if self.settings_model else ())

    def _first_get(self, key: str, default: Any) -> Any:
        kept = _CALLERS_DEFAULT
        if key in self.values:
            if default is None:
                kept = self.values[key]
            else:
                try:
                    kept = convert(self.values[key], type(default))
                except ValueError as error:
                    log.warning(
                        "a setting does not convert; its default is used",
                        action="config.setting_unusable",
                        agent=self.agent_name,
                        key=key,
                        wanted=type(default).__name__,
                        error=str(error),
                    )
        elif default is None and self.settings is not None and key in type(self.settings).model_fields:
            kept = getattr(self.settings, key)
        self._converted[key, type(default)] = kept
        return default if kept is _CALLERS_DEFAULT else kept
