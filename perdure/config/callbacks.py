"""`@on_config("key", …)`: methods that are told what a key was and what it is now."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

import structlog

from perdure.config.snapshot import AgentConfig

MARK: Final = "__perdure_on_config__"
F = TypeVar("F", bound=Callable[..., Any])

log = structlog.get_logger()


def on_config(*keys: str) -> Callable[[F], F]:
    """Mark a method `(self, key, old, new)`, sync or async, to be called after a changed snapshot is live.

    It is called once for each of `keys` that changed, one call at a time, never at the start; `old` and `new` have the
    type that `get_setting` gives, None without a value. A secret's reference is passed, never the secret. A method
    that raises is told on `config.applied.<agent>`; the others are called all the same, and the change stays.
    Raises `TypeError` without keys.
    """
    if not keys or not all(isinstance(key, str) for key in keys):
        raise TypeError('@on_config needs the keys it is for: @on_config("agent_role")')

    def mark(method: F) -> F:
        setattr(method, MARK, keys)
        return method

    return mark


async def call_back(owner: object, before: AgentConfig, after: AgentConfig) -> dict[str, str]:
    """Call the marked methods of `owner` whose keys differ; the errors by `method(key)`."""
    changed = set(after.changed_keys(before))
    errors: dict[str, str] = {}
    for name, keys in _marked(type(owner)):
        for key in keys:
            if key not in changed:
                continue
            try:
                result = getattr(owner, name)(key, before.get_setting(key), after.get_setting(key))
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                log.exception("a config callback failed", action="config.callback_failed", method=name, key=key)
                errors[f"{name}({key})"] = f"{type(error).__name__}: {error}"
    return errors


def _marked(kind: type) -> list[tuple[str, tuple[str, ...]]]:
    """The marked methods, those of base classes first, each class in the order it is written."""
    names = dict.fromkeys(name for base in reversed(kind.__mro__) for name in vars(base))
    return [(name, keys) for name in names if (keys := getattr(getattr(kind, name, None), MARK, None))]
