"""Named points at which tests stop, kill or delay a process; in production each is one look at an empty list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

Hook = Callable[[str, str, str], None]

AGENT: Final[Mapping[str, str]] = {
    "claim.before": "wake-ups are there, and no run is claimed for them yet",
    "claim.after": "runs are claimed, and their journals not read yet",
    "claim.begun": "claimed runs are in memory, and their wake-ups not acknowledged yet",
    "step.before": "the function of a step is about to be called",
    "step.after_effect": "the function of a step has returned",
    "step.failed": "the function of a step has raised, and no row says so yet",
    "step.before_commit": "the outcome of a step is about to go to the journal",
    "step.after_commit": "a row of a run is committed, and its code has not heard of it",
    "transaction.written": "the row of a `ctx.transaction` is written, and its transaction not committed",
    "patch.before": "the first run comes to a `ctx.patched`, and no row says so yet",
    "config.before": "a run is about to adopt a newer configuration",
    "signal.taken": "a wait has its signal, and no row has consumed it",
    "timer.due": "a timer in memory has fired, and no row says so yet",
    "child.ended": "a parent has read its child's end, and no row says so yet",
    "cancel.heard": "a run has heard that it is to end, and no row says so yet",
    "commit.before": "a group of rows is about to be committed",
    "commit.rows": "the rows of a group are written, its children, snapshots and signals not yet",
    "commit.written": "a group is written as a whole, and not committed",
    "commit.after": "a group of rows is committed, and nobody was told",
    "commit.between": "the rows of a group are committed, its waits and ends not yet",
    "move.before": "waits and ends are about to be committed",
    "move.written": "waits are written, and what came meanwhile not looked for yet",
    "move.after": "waits and ends are committed, and nobody was told",
    "wait.before": "a run is about to leave memory for a wait",
    "wait.after": "the wait of a run is committed",
    "end.before": "the end of a run is about to go to the journal",
    "end.after": "the end of a run is committed",
    "continue.before": "a run has called `ctx.continue_as_new`, and has not begun anew",
    "events.before": "a commit is made, and neither events nor wake-ups were sent",
    "children.started": "a child is committed, and its wake-up not sent",
    "parents.before": "a child has ended, and its parent is not woken",
    "parents.after": "the parent of an ended child is pending, and its wake-up not sent",
    "release.before": "a draining process is about to give its runs back",
    "release.after": "the runs of a draining process are pending, and their wake-ups not sent",
}
"""What happens in the process of an agent."""

SCHEDULER: Final[Mapping[str, str]] = {
    "accept.before": "runs were asked for, and are not committed",
    "accept.after": "runs are committed, and neither woken nor answered for",
    "task.before": "a task message is taken, and its run not accepted",
    "task.after": "the run of a task message is accepted, and the message not acknowledged",
    "bury.before": "a process is found lost, and not marked",
    "bury.after": "a lost process is marked, and its runs not requeued",
    "requeue.after": "the runs of a lost process are pending, and their wake-ups not sent",
    "timers.before": "due timers are about to be looked for",
    "timers.after": "due runs are pending, and their wake-ups not sent",
    "outbox.before": "pending runs that nobody took are about to be looked for",
    "outbox.after": "such runs are marked as woken again, and their wake-ups not sent",
    "signal.before": "a signal was asked for, and is not kept",
    "signal.after": "a signal is kept, and its run neither woken nor nudged",
    "cancel.before": "a cancellation was asked for, and is not written",
    "cancel.after": "a cancellation is written, and neither told nor passed on to children",
    "resume.before": "a resume was asked for, and is not written",
    "resume.after": "a resumed run is pending, and its wake-up not sent",
    "fork.before": "a fork was asked for, and is not written",
    "fork.after": "a fork is pending, and its wake-up not sent",
    "schedule.before": "the runs of due schedules are written, and not committed",
    "schedule.after": "the runs of due schedules are committed, and their wake-ups not sent",
}
"""What happens in the process of a scheduler."""

RETENTION: Final[Mapping[str, str]] = {
    "retention.forgotten": "runs of a shelf that is due are deleted, and the deletion is not committed",
    "retention.moved": "the others have moved to another shelf, and the move is not committed",
    "retention.page": "a page of a shelf that is due is committed, and the next one not begun",
    "retention.emptied": "no run refers to a shelf any more, and it is still there",
    "retention.dropped": "a shelf is dropped",
}
"""What happens in the process of a scheduler once a minute at most."""

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
