"""`ctx`, the part that starts other runs."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack

from perdure import subjects
from perdure.engine.codec import encode, identity, short_hash
from perdure.engine.failure import too_large
from perdure.engine.keyed import JoinedCall, KeyedStart
from perdure.engine.runs import new_start
from perdure.engine.start_options import StartOptions, start_options
from perdure.engine.waits import ChildCall, RecordCall, one_line, seconds_of
from perdure.errors import WorkflowMisuse
from perdure.starting import SPANS, StartKeywords

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution
    from perdure.engine.rows import Start


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A run that was started and is not waited for."""

    run_id: str
    agent: str


class ChildContext:
    """What `Context` offers for other runs."""

    __slots__ = ()

    _execution: Execution

    def call(
        self,
        agent: str,
        task: Any,
        *,
        workflow: str = "run",
        run_id: str | None = None,
        timeout: float | timedelta | None = None,
        session_id: str | None = None,
        **options: Unpack[StartKeywords],
    ) -> Awaitable[Any]:
        """Run another agent as a durable child and return its output.

        It stands in `queue` (with a `priority` or a `fair_key`: in its agent's own) and begins after `delay` or at
        `start_at`, as `Client.start` says. The same `run_id` again is the same run. Raises
        `RunFailed(run_id, status, error)` when it ends otherwise, `Conflict` when `run_id` exists with another task,
        and `TimeoutError` after `timeout`, upon which the child is asked to end.

        With `dedup_key` (and `dedup_window`) or `debounce_key` (with `debounce`, `debounce_max`), in seconds, it is
        the run that has the key, or a new one; others may wait for that run, too, so it is nobody's child: neither a
        `timeout` nor the end of this run ends it.
        """
        execution = self._execution
        wait = None if timeout is None else seconds_of(timeout, what=f"timeout of call to {agent!r}")
        target = subjects.agent_name(agent)
        run = execution.run
        if session_id is not None and (target, session_id) == (run.agent_name, run.session_id):
            raise WorkflowMisuse(
                f"this run is a turn of session {session_id!r}, and waits here for a later turn of its own session, "
                "which begins when this one has ended. Leave out session_id, or use ctx.start."
            )
        digest = identity(target, (task, workflow, run_id, session_id), _said(options))
        placed = self._placed(workflow, session_id, options)
        if placed is not None and placed.keyed:
            begin = functools.partial(
                self.start, agent, task, workflow=workflow, run_id=run_id, session_id=session_id, **options
            )
            return self._join(begin, digest, wait)
        branch = execution.branch()
        child = self._child_id(run_id, branch)
        start = new_start(
            child, target, task, workflow=workflow, session_id=session_id, parent=(run.run_id, ""), options=placed
        )
        call = ChildCall(execution, branch, target, digest, start, wait)
        self._sent(start, parent_path=call.path)
        return call

    async def _join(self, begin: Callable[[], Awaitable[ChildRun]], digest: str, wait: float | None) -> Any:
        execution, child = self._execution, await begin()  # in the branch that awaits: in a gather, one of its own
        start = new_start(child.run_id, child.agent, None, parent=(execution.run_id, ""))
        return await JoinedCall(execution, execution.branch(), child.agent, digest, start, wait)

    def start(
        self,
        agent: str,
        task: Any,
        *,
        workflow: str = "run",
        run_id: str | None = None,
        session_id: str | None = None,
        **options: Unpack[StartKeywords],
    ) -> Awaitable[ChildRun]:
        """Start a durable child and go on; the child's id is known at once. The options are those of `call`.

        With a key it is the run that has the key, or a new one.
        """
        execution = self._execution
        branch = execution.branch()
        target = subjects.agent_name(agent)
        child = self._child_id(run_id, branch)
        placed = self._placed(workflow, session_id, options)
        start = new_start(child, target, task, workflow=workflow, session_id=session_id, options=placed)
        self._sent(start)
        digest = identity(target, (task, workflow, run_id, session_id), _said(options))
        if placed is not None and placed.keyed:
            return KeyedStart(execution, branch, start, digest, _child)
        said = encode({"run_id": child, "agent": target}, what="child")
        return RecordCall(execution, branch, "start", target, digest, result=said, start=start, change=_child)

    def _placed(self, workflow: str, session_id: str | None, options: StartKeywords) -> StartOptions | None:
        one_line(workflow, what="workflow")
        if session_id is not None:
            subjects.run_id(session_id, field="session_id")
        return start_options(now=self._execution.host.clock.now(), **options)

    def _sent(self, start: Start, *, parent_path: str | None = None) -> None:
        execution = self._execution
        start.parent_path = parent_path
        start.trace = execution.trace.header if execution.trace is not None else None
        refused = too_large(f"the task of {start.agent_name}", start.task, execution.host.settings.max_payload)
        if refused is not None:
            raise refused

    def _child_id(self, wanted: str | None, branch: Branch) -> str:
        if wanted is not None:
            return subjects.run_id(wanted)
        run, position = self._execution.run, f"{branch.prefix}{branch.taken + 1}"
        return f"{run.run_id[:80]}-{short_hash(run.run_id, str(run.base_seq), position)}"


def _child(said: Mapping[str, Any]) -> ChildRun:
    return ChildRun(said["run_id"], said["agent"])


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as they count for a call's identity: without any it is what it always was."""
    return {
        key: value.isoformat()
        if isinstance(value, datetime)
        else seconds_of(value, what=key)
        if key in SPANS
        else value
        for key, value in options.items()
        if value is not None and (key, value) != ("priority", 0)
    }
