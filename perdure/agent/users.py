"""For whom a run works: the `user` that its task names, handed on to the runs that it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from perdure.engine import Context
from perdure.errors import InvalidRequest

USER: Final = "user"
"""The key of a task that names the user."""
_LONGEST: Final = 256


def read_user(task: Any) -> str | None:
    """The user that a task names. Raises `InvalidRequest` for one that is no short text."""
    user = task.get(USER) if isinstance(task, Mapping) else None
    if user is None:
        return None
    if not isinstance(user, str) or not user.strip() or len(user) > _LONGEST or not user.isprintable():
        raise InvalidRequest(f"field 'user' of the task: a printable text of 1 to {_LONGEST} characters, or left out")
    return user


def user_of(ctx: Context) -> str | None:
    """The user that the task of `ctx`'s run names."""
    return read_user(orjson.loads(ctx._execution.run.task))  # noqa: SLF001  (of the same library)


def with_user(task: Mapping[str, Any], user: str | None) -> dict[str, Any]:
    """`task`, naming `user` if there is one."""
    return dict(task) if user is None else {**task, USER: user}
