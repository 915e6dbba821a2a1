"""Waits: for a time, a signal or a child run. Each leaves memory and its slot until a row or a nudge brings it back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from perdure.engine.calls import Call
from perdure.engine.codec import decode, encode
from perdure.engine.points import reach
from perdure.engine.rows import JournalRow, Snapshot, Start
from perdure.errors import Conflict, RunFailed, StepFailed

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution


class Wait(Call[Any]):
    """A call that first says, in an open row, until when it waits."""

    __slots__ = ("_opened", "_seconds")

    def __init__(self, execution: Execution, branch: Branch, name: str, digest: str, seconds: float | None) -> None:
        super().__init__(execution, branch, branch.take(), name, digest)
        self._seconds = seconds
        self._opened: JournalRow | None = None

    def go_live(self) -> None:
        """Write the open row, or go on from it."""
        if self._opened is None and self._needs_opening():
            self.write(self.row("open", self._opening(), due_at=self._due()), self._start())
            return
        if self._opened is not None and self._opened.due_at is not None:
            self.set_timer(self._opened.due_at)
        self.look()

    def on_row(self, row: JournalRow) -> None:
        """An open row is remembered; any other is the outcome."""
        if row.outcome == "open":
            self._opened = row
            if not self.execution.replaying:
                self.go_live()
        elif row.outcome == "timeout":
            self.resolve(error=TimeoutError(f"{self.kind} {self.name!r} was not there in time"))
        elif row.outcome == "error":
            self.resolve(error=self._error_of(row))
        else:
            self.resolve(decode(row.result))

    async def _timer(self, due_at: datetime) -> None:
        execution = self.execution
        await execution.host.clock.sleep_until(due_at)
        if any(call.signal is not None or call.child is not None for call in execution.pending.values()):
            # A run may come back long after its time was over. What came for it in the meantime is there, and is first.
            await execution.host.looked(execution)
        await super()._timer(due_at)

    def on_due(self) -> None:
        """The time is over: that is an outcome, and journaled as one."""
        self.stop_looking()
        self.write(self.row("timeout"))

    def _due(self) -> datetime | None:
        return None if self._seconds is None else self.after(self._seconds)

    def _needs_opening(self) -> bool:
        return self._seconds is not None

    def _opening(self) -> str | None:
        return None

    def _start(self) -> Start | None:
        return None

    def look(self) -> None:
        """See whether what is waited for is there already."""

    def stop_looking(self) -> None:
        """The call has decided; what comes later is not its own."""
        self.signal = self.child = None

    def _error_of(self, row: JournalRow) -> BaseException:
        return refused(self, row)


class SleepCall(Wait):
    """A durable sleep."""

    kind = "sleep"
    __slots__ = ()

    def on_due(self) -> None:
        """The sleep is over."""
        self.write(self.row("ok"))


class SleepUntilCall(SleepCall):
    """A durable sleep to a moment."""

    __slots__ = ("_moment",)

    def __init__(self, execution: Execution, branch: Branch, name: str, digest: str, moment: datetime) -> None:
        super().__init__(execution, branch, name, digest, 0.0)
        self._moment = moment

    def _due(self) -> datetime:
        return self._moment


class SignalCall(Wait):
    """Waits for the next signal of a name, first in, first out."""

    kind = "signal"
    __slots__ = ("_deferred", "_taken")

    def __init__(self, execution: Execution, branch: Branch, name: str, digest: str, seconds: float | None) -> None:
        super().__init__(execution, branch, name, digest, seconds)
        self._taken: int | None = None  # the seq of its signal
        self._deferred = False  # until an earlier signal, which is on its way back, is there

    def look(self) -> None:
        """Take a signal that an earlier wait gave back; else wait under the signal's name, and read the mailbox."""
        execution = self.execution
        if back := execution.given_back.get(self.name):
            seq = min(back)
            self.take(seq, back.pop(seq))
        elif execution.on_their_way_back.get(self.name):
            self._deferred = True
        else:
            self.signal = self.name
            execution.host.want_signals(execution)

    def take(self, seq: int, payload: str) -> None:
        """The signal `seq` is this call's: consuming it is part of the journal write."""
        reach("signal.taken", self.execution.run_id, self.name)
        self._taken = seq
        self.stop_looking()
        self.stop_timer()
        self.due_at = None
        self.write(self.row("ok", payload, signal_seq=seq))

    def on_due(self) -> None:
        """The time is over."""
        self._deferred = False
        super().on_due()

    def on_row(self, row: JournalRow) -> None:
        """A signal that is consumed is nobody else's."""
        if row.signal_seq is not None:
            self.execution.given_back.get(self.name, {}).pop(row.signal_seq, None)
        super().on_row(row)

    def abandon(self) -> None:
        """A signal that was taken is the next wait's, once this call's row is there."""
        if self._taken is not None and not self.done and not self.abandoned:
            self.execution.on_their_way_back.setdefault(self.name, set()).add(self._taken)
        super().abandon()

    def passed_over(self, row: JournalRow) -> None:
        """The signal came when its wait was over already (it lost a race): the next wait gets it."""
        execution = self.execution
        if row.signal_seq is None:
            return
        if self._taken is not None:
            execution.on_their_way_back[self.name].discard(row.signal_seq)
        if row.result is not None:
            execution.given_back.setdefault(self.name, {})[row.signal_seq] = row.result
        for call in list(execution.pending.values()):
            if isinstance(call, SignalCall) and call.name == self.name and call._deferred:  # noqa: SLF001 -- its own kind
                call._deferred = False  # noqa: SLF001
                call.look()


class ChildCall(Wait):
    """A child run; its output, or `RunFailed`."""

    kind = "call"
    __slots__ = ("start",)

    def __init__(
        self, execution: Execution, branch: Branch, name: str, digest: str, start: Start, seconds: float | None
    ) -> None:
        super().__init__(execution, branch, name, digest, seconds)
        self.start = start

    def _needs_opening(self) -> bool:
        return True

    def _opening(self) -> str | None:
        return encode({"run_id": self.start.run_id}, what="child")

    def _start(self) -> Start | None:
        return self.start

    def look(self) -> None:
        """Wait for the child, and look how it is."""
        self.child = self.start.run_id
        self.execution.host.want_children(self.execution)

    def ended(self, record: Any) -> None:
        """The child's row says that it has ended, or that another task has its id."""
        reach("child.ended", self.execution.run_id, self.name)
        self.stop_looking()
        self.stop_timer()
        self.due_at = None
        if record["task_hash"] != self.start.task_hash:
            said = {"type": "Conflict", "message": f"run {self.start.run_id} exists with another task"}
            error = {"run_id": self.start.run_id, "status": "conflict", "error": said}
            self.write(self.row("error", error=encode(error, what="error")))
        elif record["status"] == "completed":
            self.write(self.row("ok", record["output"]))
        else:
            error = {"run_id": self.start.run_id, "status": record["status"], "error": decode(record["error"])}
            self.write(self.row("error", error=encode(error, what="error")))

    def on_due(self) -> None:
        """The time is over: the child is asked to end, too."""
        self._let_go()
        super().on_due()

    def abandon(self) -> None:
        """Nobody waits for the child any more: it is asked to end."""
        if self._opened is not None and not self.done:
            self._let_go()
        super().abandon()

    def passed_over(self, row: JournalRow) -> None:
        """The child was on its way when its caller gave up."""
        if row.outcome == "open":
            self._let_go()

    def _let_go(self) -> None:
        self.execution.host.cancel_child(self.execution.run_id, self.start.run_id)

    def _error_of(self, row: JournalRow) -> BaseException:
        said = decode(row.error)
        if "status" not in said:
            return super()._error_of(row)
        if said["status"] == "conflict":
            return Conflict(said["error"]["message"], run_id=said["run_id"])
        return RunFailed(said["run_id"], said["status"], said.get("error"))


class RecordCall(Call[Any]):
    """Something that is written down and done with: an event, a detached child, an adopted configuration."""

    can_inline: ClassVar[bool] = False
    __slots__ = ("_change", "_result", "_start", "kind")

    def __init__(
        self,
        execution: Execution,
        branch: Branch,
        kind: str,
        name: str,
        digest: str,
        *,
        result: str | None = None,
        start: Start | None = None,
        change: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        super().__init__(execution, branch, branch.take(), name, digest)
        self.kind = kind  # type: ignore[misc]
        self._result = result
        self._start = start
        self._change = change

    def go_live(self) -> None:
        """Write it down."""
        self.write(self.row("ok", self._result), self._start)

    def on_row(self, row: JournalRow) -> None:
        """It is written."""
        if row.outcome == "ok":
            self.resolve(self._change(decode(row.result)))
        else:
            self.resolve(error=refused(self, row))


class AdoptCall(Call[Any]):
    """Takes the newest configuration for the rest of the run; a row stands for it only when there was a newer one."""

    kind = "config"
    __slots__ = ("_newest",)

    def __init__(self, execution: Execution, branch: Branch) -> None:
        super().__init__(execution, branch, branch.take(), "adopt", "")
        self._newest: AgentConfig | None = None

    def begin(self) -> None:
        """Replay what was adopted here, if anything was."""
        if self.execution.replaying and self.path not in self.execution.history_paths:
            self.begun = True
            self.resolve(self.execution.config)
            return
        super().begin()

    def go_live(self) -> None:
        """Adopt the newest snapshot, unless it is the one the run stands on."""
        newest = self.execution.host.newest_config()
        if newest.hash == self.execution.config.hash or newest.revision < self.execution.config.revision:
            self.resolve(self.execution.config)
            return
        reach("config.before", self.execution.run_id)
        self._newest = newest
        said = {"revision": newest.revision, "hash": newest.hash}
        values = encode(dict(newest.values), what="configuration")
        kept = Snapshot(self.execution.run.agent_name, newest.hash, newest.revision, values)
        self.write(self.row("ok", encode(said, what="snapshot")), snapshot=kept)

    def on_row(self, row: JournalRow) -> None:
        """Stand on the snapshot that the row names."""
        if row.outcome != "ok":
            self.resolve(error=refused(self, row))
            return
        self.execution.config = self._newest or self.execution.snapshots[decode(row.result)["hash"]]
        self.resolve(self.execution.config)


def refused(call: Call[Any], row: JournalRow) -> StepFailed:
    """What a call raises whose row the database refused."""
    return StepFailed(call.name, row.attempt, decode(row.error) or {})


def one_line(name: Any, *, what: str) -> str:
    """`name`, as every store can hold it. Raises `TypeError` or `ValueError` naming `what` for anything else."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be text, not {type(name).__name__}")
    if not 0 < len(name) <= 256 or not name.isprintable():
        raise ValueError(f"{what} must be one line of 1 to 256 printable characters, not {name[:300]!r}")
    return name


def seconds_of(value: Any, *, what: str) -> float:
    """A duration in seconds. Raises `TypeError` or `ValueError` naming `what` for anything else."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be seconds or a timedelta, not {type(value).__name__}")
    if not 0 <= value < 10**10:
        raise ValueError(f"{what} must be a number of seconds from 0 on, not {value}")
    return float(value)


def moment_of(value: Any, *, what: str) -> datetime:
    """A moment in UTC. Raises `TypeError` or `ValueError` naming `what` for anything else."""
    if not isinstance(value, datetime):
        raise TypeError(f"{what} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise ValueError(f"{what} has no time zone: {value.isoformat()}; give one, like ctx.now() has")
    return value.astimezone(UTC)
