"""Named points at which tests stop, kill or delay a process; in production each is one comparison with `None`.

The names: claim.before, claim.after, step.before, step.after_effect, step.before_commit, step.after_commit,
wait.before, end.before, end.after.
"""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str, str, str], None]

_hooks: list[Hook] = []


def reach(point: str, run_id: str = "", name: str = "") -> None:
    """Say that `point` is reached for a run and, where there is one, a step."""
    if _hooks:
        for hook in _hooks:
            hook(point, run_id, name)


def install(hook: Hook) -> Callable[[], None]:
    """Call `hook(point, run_id, name)` at every point; the returned function takes it out again."""
    _hooks.append(hook)
    return lambda: _hooks.remove(hook)
