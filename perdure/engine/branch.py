"""The lines of a workflow's execution, and which of them calls."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from perdure.errors import WorkflowMisuse

if TYPE_CHECKING:
    from perdure.engine.calls import Call
    from perdure.engine.execution import Execution

OUTSIDE = (
    "ctx was used outside of its workflow's own line (in an asyncio task, a thread or a step). "
    "Use ctx.gather(...) for parallel work, and a step's own arguments and results inside a step."
)

current: ContextVar[Branch | None] = ContextVar("perdure_branch", default=None)
step_of: ContextVar[Call[Any] | None] = ContextVar("perdure_step", default=None)
"""The step whose function runs here, in its own task, its branch's, or a thread."""


def where() -> dict[str, str]:
    """For log lines: which run, which agent, and which step of it is executed here."""
    call, branch = step_of.get(), current.get()
    if call is None and branch is None:
        return {}
    execution = call.execution if call is not None else branch.execution  # type: ignore[union-attr]
    said = {"run_id": execution.run_id, "agent": execution.run.agent_name}
    if call is not None:
        said["step"] = call.name
    if execution.trace is not None:
        said["trace_id"] = execution.trace.trace_id
    return said


def this_task() -> asyncio.Task[Any] | None:
    """The asyncio task that calls; None in a thread."""
    try:
        return asyncio.current_task()
    except RuntimeError:  # in a thread
        return None


def current_line() -> Branch | None:
    """The branch of a workflow that calls, None in a step and outside of a run.

    Raises `WorkflowMisuse` in an asyncio task that the workflow's code has made itself.
    """
    branch = current.get()
    if branch is None or branch.in_step:
        return None
    task = this_task()
    if task is None:
        return None  # a step's thread
    if task is not branch.task:
        raise WorkflowMisuse(OUTSIDE)
    return branch


class Branch:
    """One line of a workflow's execution: the body itself, or a coroutine given to `ctx.gather`."""

    __slots__ = ("execution", "in_step", "prefix", "taken", "task", "waiting_on")

    def __init__(self, execution: Execution, prefix: str) -> None:
        self.execution = execution
        self.prefix = prefix
        self.taken = 0
        self.task: asyncio.Task[Any] | None = None
        self.waiting_on: Call[Any] | None = None
        self.in_step = False

    def take(self) -> str:
        """The next position of this branch."""
        self.taken += 1
        return f"{self.prefix}{self.taken}"

    def enter(self) -> None:
        """Make this the branch of the task that calls."""
        self.task = asyncio.current_task()
        current.set(self)

    def cancel(self) -> None:
        """Raise `CancelledError` where the branch stands; it counts as active from now on."""
        waiting = self.waiting_on
        if waiting is not None and not waiting.done:
            if waiting.unwind(self):
                return  # its parts tidy up first
            if not waiting.abandoned:
                waiting.abandon()
            self.execution.active += 1
        if self.task is not None:
            self.task.cancel()

    def raise_cancelled(self) -> None:
        """What this branch waited for has unwound."""
        self.execution.active += 1
        if self.task is not None:
            self.task.cancel()
