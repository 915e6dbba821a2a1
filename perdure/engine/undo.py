"""Undoing: what a workflow registered with `ctx.on_failure` is run in reverse order when it fails or is cancelled.

Each registration and each undoing is a journal row, so a process that dies in between loses none and repeats none that
is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from perdure.engine.failure import describe
from perdure.engine.retry import Retry
from perdure.engine.steps import StepCall

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Undo:
    """One registration: `function(*args, **kwargs)` takes back what stands at `path`."""

    path: str
    name: str
    digest: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    retry: Retry | None
    timeout: float | None


class UndoCall(StepCall):
    """The step that undoes."""

    kind = "undo"
    __slots__ = ()

    def __init__(self, execution: Execution, branch: Branch, undo: Undo) -> None:
        super().__init__(
            execution,
            branch,
            undo.name,
            undo.digest,
            undo.function,
            undo.args,
            undo.kwargs,
            undo.retry,
            undo.timeout,
        )
        self.path = f"undo:{undo.path}"


async def undo_all(execution: Execution, branch: Branch, undos: list[Undo]) -> dict[str, Any]:
    """Run `undos`, the last first, up to one that fails; what became of them, for the run's error.

    `undone` and `not_undone` are names; `undo_error` is there when one failed.
    """
    names = [undo.name for undo in reversed(undos)]
    for place, undo in enumerate(reversed(undos)):
        try:
            await UndoCall(execution, branch, undo)
        except Exception as error:
            log.exception("undo failed", action="run.undo_failed", run_id=execution.run_id, undo=undo.name)
            return {"undone": names[:place], "not_undone": names[place:], "undo_error": describe(error)}
    return {"undone": names}
