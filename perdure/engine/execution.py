"""One claimed run in this process's memory: its branches, its replay, its outcomes.

The workflow's code runs in asyncio tasks, one a branch. A branch is *active* until it waits for a call. Outcomes are
handed over one at a time, in journal order, and only while no branch is active: so code that replays sees its
outcomes in the order in which it first saw them. When nothing is active, nothing under way and nothing to hand over,
the run waits, and leaves memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from perdure.engine.branch import OUTSIDE, Branch, current, this_task
from perdure.engine.codec import encode
from perdure.engine.entries import Entry
from perdure.engine.failure import describe, mismatch, too_large
from perdure.engine.points import reach
from perdure.engine.rows import ClaimedRun, JournalRow, Move, Snapshot, Start
from perdure.errors import ControlFlow, RunContinued, RunSuspended, WorkflowMisuse

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.calls import Call
    from perdure.engine.definition import WorkflowDefinition
    from perdure.engine.host import Host
    from perdure.engine.undo import Undo
    from perdure.observe.otel import RunTrace

log = structlog.get_logger(__name__)


class Execution:
    """A run that this process holds, under its epoch."""

    def __init__(
        self,
        host: Host,
        run: ClaimedRun,
        definition: WorkflowDefinition,
        history: list[JournalRow],
        config: AgentConfig,
        snapshots: Mapping[str, AgentConfig],
        process_id: str,
    ) -> None:
        self.host = host
        self.run = run
        self.run_id = run.run_id
        self.epoch = run.epoch
        self.definition = definition
        self.config = config
        self.snapshots = snapshots  # those that the history names
        self.process_id = process_id  # under which it was claimed
        self.root = Branch(self, "")
        self.active = 0
        self.busy = 0  # live work and uncommitted rows
        self.time: datetime = run.started_at
        self.closed = False
        self.leaving = False  # a move is on its way
        self.pausing = False  # nothing more is handed over: the run is paused once nothing is under way
        self.calls: dict[str, Call[Any]] = {}
        self.pending: dict[str, Call[Any]] = {}
        self.patches = {row.name for row in history if row.kind == "patch"}
        self.ready: deque[JournalRow] = deque(row for row in history if row.kind not in ("patch", "fork"))
        self._forks = deque((row.seq, row.name) for row in history if row.kind == "fork")
        self.history_left = len(self.ready)
        self.history_paths = {row.path for row in self.ready}
        self.last_seq = max(history[-1].seq if history else run.base_seq, run.seq_floor)
        self._next_handover = self._first_handover = self.last_seq + 1
        self._settled: dict[int, JournalRow | None] = {}
        self.taken: set[int] = set()  # the signals that calls of this execution have taken
        self.given_back: dict[str, dict[int, str]] = {}  # signals consumed by waits that were over: payloads by seq
        self.on_their_way_back: dict[str, set[int]] = {}  # such signals whose rows are not handed over yet
        self.unwritten_patches: dict[int, JournalRow] = {}
        self.named = False  # whether a row of this epoch is committed: the first one names the process
        self._pumping = False
        self._linger: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.cancel_reason = run.cancel_reason
        self._straight = False  # under `always_replay`: an outcome was handed over that no replay has shown yet
        self.undos: list[Undo] = []  # what the code registered to be undone if it fails
        self.undoing = False
        self.trace: RunTrace | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on, with the workflow's code."""
        self.active = 1
        if self.cancel_reason is not None and "!cancel" not in self.history_paths:
            from perdure.engine.calls import CancelCall  # noqa: PLC0415 -- calls are made of the execution

            # It comes after what was, and before anything new is begun: until then the code counts as replaying.
            self.history_paths.add("!cancel")
            self.history_left += 1
            self.write(CancelCall(self).row("ok"))
        self.spawn(self._main())
        if self.cancel_reason is not None:
            self.cancel(self.cancel_reason)

    async def _main(self) -> None:
        from perdure.engine.context import Context  # noqa: PLC0415 -- the context is made of the execution

        self.root.enter()
        try:
            task = self.definition.task.decode(self.run.task, what="the task")
            value = await self.definition.call(Context(self), task)
            output = self.definition.result.encode(value, what="the output")
        except RunContinued as again:
            self._end(Move("pending", task=again.task, base_seq=self.last_seq, given_back=self._unheard()))
        except asyncio.CancelledError as error:
            if not self.closed:
                await self._fail(error)
        except RunSuspended:
            return
        except BaseException as error:  # noqa: BLE001 -- whatever a workflow raises is its run's outcome
            await self._fail(error)
        else:
            if (refused := too_large("the output", output, self.host.settings.max_payload)) is not None:
                await self._fail(refused)
                return
            self._end(Move("completed", output=output))
        finally:
            current.set(None)  # this task is kept by the branch that it would keep

    def _unheard(self) -> tuple[int, ...]:
        """The signals that rows of this life have consumed, or will have, and that its code has not been handed."""
        ready = {row.signal_seq for row in self.ready if row.signal_seq is not None}
        return tuple(sorted(ready.union(*self.on_their_way_back.values(), *self.given_back.values())))

    async def _fail(self, error: BaseException) -> None:
        """Undo what the code has registered for this, then end. A cancellation does not reach the undoing."""
        status, said = self._verdict(error)
        if self.undos:
            from perdure.engine.undo import undo_all  # noqa: PLC0415 -- an undo is a step, which knows executions

            self.undoing = True
            task = asyncio.current_task()
            while task is not None and task.cancelling():
                task.uncancel()
            line = Branch(self, "undo:")
            line.enter()
            said |= await undo_all(self, line, self.undos)
            if "undo_error" in said:
                status = "failed"
        self._end(Move(status, error=encode(said, what="error")))

    def _verdict(self, error: BaseException) -> tuple[str, dict[str, Any]]:
        told = self.calls.get("!cancel")
        if (told is not None and told.done) or isinstance(error, asyncio.CancelledError):
            return "cancelled", {"type": "Cancelled", "message": self.cancel_reason or "the workflow cancelled itself"}
        log.info(
            "workflow failed", action="run.failed", run_id=self.run_id, error_type=type(error).__name__, exc_info=error
        )
        return "failed", describe(error)

    def _end(self, move: Move) -> None:
        """The workflow's code is through: write its end, unless the journal knows of outcomes it never asked for."""
        if self.closed or self.leaving:
            return
        left = []
        if self.history_left:
            left = [row for row in self.ready if row.path not in self.calls and row.kind != "cancel"]
        if left:
            self.block(mismatch(left[0], None, [], ended=move.status))
            return
        if self._straight:
            self._replay()
            return
        self.leaving = True
        reach("end.before", self.run_id)
        self.last_seq += 1
        move.end_seq = self.last_seq
        self.host.journal.add(Entry(self, move=move))

    def block(self, error: dict[str, Any]) -> None:
        """Stop as `blocked`: the code and the journal disagree. Nothing is lost; fixed code resumes the run."""
        if self.closed or self.leaving:
            return
        self.leaving = True
        log.warning("run blocked", action="run.blocked", run_id=self.run_id, error=error["message"])
        self.host.journal.add(Entry(self, move=Move("blocked", error=encode(error, what="error"))))

    def close(self) -> None:
        """Leave memory. Whatever the code still tries with its context raises `RunSuspended`."""
        if self.closed:
            return
        self.closed = True
        if self._linger is not None:
            self._linger.cancel()
        for task in list(self._tasks):
            task.cancel()
        self.host.closed(self)
        self._fall_apart()

    def _fall_apart(self) -> None:
        """Once nothing of a closed run executes any more: its parts refer to it no longer by way of it.

        So each is freed with the last who uses it. Else all of them would be there until a collection finds them, and
        of thousands of runs that takes a tenth of a second in which nothing else happens.
        """
        if self.closed and not self._tasks:
            for call in self.pending.values():
                call.task = None
                part: Call[Any] | None = call
                while part is not None:
                    part.parent, part = None, part.parent
            self.calls.clear()
            self.pending.clear()
            self.undos.clear()
            self.__dict__.pop("root", None)

    def pause(self) -> None:
        """Begin nothing more; the run is `paused` when the steps under way are over and journaled."""
        if self.closed or self.leaving or self.cancel_reason is not None:
            return
        self.pausing = True
        self.pump()

    def cancel(self, reason: str) -> None:
        """End the run as `cancelled`, from where it stands; the place is journaled, so that it replays."""
        if self.closed or self.leaving or "!cancel" in self.calls:
            return
        self.cancel_reason = reason
        self.pausing = False
        self.host.loop.call_later(self.host.cancel_grace, self._cancel_by_force, self.history_left + 1)
        if "!cancel" in self.history_paths:
            return
        from perdure.engine.calls import CancelCall  # noqa: PLC0415 -- calls are made of the execution

        CancelCall(self).begin()

    def _cancel_by_force(self, left: int) -> None:
        """The code does not give way (it waits for something of its own): the run ends without it.

        Code that has seen the cancellation and waits for a call made since is tidying up: it is left to its work. So
        is a replay that goes on: it had more than `left` rows to go a while ago.
        """
        if self.closed or self.leaving or self.undoing:
            return
        told = self.calls.get("!cancel")
        tidying = told is not None and told.done and any(each.awaited or each.parent for each in self.pending.values())
        replaying = self.replaying and self.history_left != left
        if tidying or replaying:
            self.host.loop.call_later(self.host.cancel_grace, self._cancel_by_force, self.history_left)
            return
        status, said = self._verdict(asyncio.CancelledError())
        if self.undos:
            status = "failed"
            said["not_undone"] = [undo.name for undo in reversed(self.undos)]
        self.ready.clear()  # code that does not give way never asked for these
        self._end(Move(status, error=encode(said, what="error")))

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that lives no longer than this execution."""
        task = self.host.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._fall_apart()
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ControlFlow):
            self.host.engine_failed(self, error)  # first: a log that cannot be written shall hold up no run
            log.error("engine task failed", action="engine.task_failed", run_id=self.run_id, exc_info=error)

    # -- branches -----------------------------------------------------------------------------------------------------

    def branch(self) -> Branch:
        """The branch that calls. Raises `WorkflowMisuse` outside of one, and `RunSuspended` once the run has left."""
        branch = self.line()
        if this_task() is not branch.task:
            raise WorkflowMisuse(OUTSIDE)
        return branch

    def line(self) -> Branch:
        """The same without asking which task calls: for a call that asks when it is awaited (it is the hot path)."""
        branch = current.get()
        if self.closed:
            raise RunSuspended
        if branch is None or branch.execution is not self:
            raise WorkflowMisuse(OUTSIDE)
        if branch.in_step:
            raise WorkflowMisuse("ctx was used inside a step. Use it in the workflow; a step takes a StepContext.")
        return branch

    def blocked(self, branch: Branch, call: Call[Any]) -> None:
        """`branch` waits for `call`."""
        branch.waiting_on = call
        self.active -= 1
        self.pump()

    # -- outcomes -----------------------------------------------------------------------------------------------------

    @property
    def wrote(self) -> bool:
        """Whether a row that this execution wrote is committed."""
        return self._next_handover > self._first_handover

    @property
    def replaying(self) -> bool:
        """Whether outcomes from an earlier life are still to be handed over."""
        return self.history_left > 0

    def register(self, call: Call[Any]) -> None:
        """`call` waits for the rows of its path."""
        self.calls[call.path] = call
        self.pending[call.path] = call

    def write(self, row: JournalRow, start: Start | None = None, snapshot: Snapshot | None = None) -> None:
        """Send `row` to the journal, with the child that it starts or the snapshot that it names."""
        if self.closed or self.leaving:
            return
        self.busy += 1
        self.host.journal.add(Entry(self, row=row, start=start, snapshot=snapshot, first=not self.named))

    @property
    def seed(self) -> str:
        """The id of the run that is told: of a fork it is the other run's up to the row at which it was forked."""
        while self._forks and not (self.ready and self.ready[0].seq < self._forks[0][0]):
            self._forks.popleft()
        return self._forks[0][1] if self._forks else self.run_id

    @property
    def told_seq(self) -> int:
        """The seq up to which all rows are committed: a reader who comes back with it misses none."""
        return self._next_handover - 1

    def next_seq(self) -> int:
        """The seq of the next row; only the holder of the epoch draws them."""
        self.last_seq += 1
        return self.last_seq

    def settle(self, seq: int, row: JournalRow | None) -> None:
        """The row with `seq` is committed, or (None) was given up. Rows are handed over in the order of their seqs."""
        if self.closed:
            return
        self.busy -= 1
        if seq == self._next_handover and not self._settled and row is not None and row.kind != "patch":
            self._next_handover += 1  # what nearly always is: nothing is out of order
            self.ready.append(row)
            self.pump()
            return
        self._settled[seq] = row
        while self._next_handover in self._settled:
            settled = self._settled.pop(self._next_handover)
            self._next_handover += 1
            if settled is not None and settled.kind != "patch":
                self.ready.append(settled)
        self.pump()

    def pump(self) -> None:
        """Hand over outcomes while no branch is active; then see whether the run waits."""
        if self._pumping or self.closed or self.leaving:
            return
        if self.pausing:
            if self.active == 0 and self.busy == 0:
                self.leaving = True
                self.host.journal.add(Entry(self, move=Move("paused")))
            return
        self._pumping = True
        try:
            while self.active == 0 and self.ready and not self.leaving and not self.pausing:
                if self.host.always_replay and not self.history_left:
                    if self.busy == 0:
                        self._replay()
                        return
                    self._straight = True  # other work is under way, which a replay would begin again
                self._hand_over(self.ready.popleft())
        finally:
            self._pumping = False
        if self.active == 0 and self.busy == 0 and not self.ready:
            self._idle()

    def _hand_over(self, row: JournalRow) -> None:
        call = self.calls.get(row.path)
        if call is None and row.kind == "cancel":
            call = self._cancel_call()
        elif call is None or row.name != call.name or row.hash != call.hash or row.kind not in (call.kind, "retry"):
            self.block(mismatch(row, call, list(self.pending.values())))
            return
        self.time = max(self.time, row.finished_at)
        if call.abandoned:
            call.passed_over(row)
        else:
            call.on_row(row)
        if self.history_left:
            self.history_left -= 1
            if self.history_left == 0:
                for waiting in list(self.pending.values()):
                    if not waiting.done and not waiting.abandoned:
                        waiting.go_live()

    def _cancel_call(self) -> Call[Any]:
        """The call that no code asks for: a person's wish that the run end."""
        from perdure.engine.calls import CancelCall  # noqa: PLC0415 -- calls are made of the execution

        call = CancelCall(self)
        self.register(call)
        return call

    def _replay(self) -> None:
        """`always_replay`: leave memory, and come back from the journal with all that is in it."""
        self.leaving = True
        self.host.replay(self)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _idle(self) -> None:
        if self.closed or self.leaving or self._linger is not None:
            return
        if self.host.linger <= 0:
            self._suspend()
        else:
            self._linger = self.host.loop.call_later(self.host.linger, self._after_linger)

    def _after_linger(self) -> None:
        self._linger = None
        if self.active == 0 and self.busy == 0 and not self.ready and not self.closed and not self.leaving:
            self._suspend()

    def _suspend(self) -> None:
        waits = [call for call in self.pending.values() if not call.done and not call.abandoned]
        due = [call.due_at for call in waits if call.due_at is not None]
        first = min(due) if due else None
        if first is not None and (first - self.host.clock.now()).total_seconds() <= self.host.linger:
            return  # its timer is in memory and about to fire
        if not any(call.due_at is not None or call.signal is not None or call.child is not None for call in waits):
            self.host.engine_failed(self, WorkflowMisuse("the workflow waits for nothing that could wake it"))
            return
        self.leaving = True
        reach("wait.before", self.run_id)
        signals = sorted({call.signal for call in waits if call.signal is not None})
        children = sorted({call.child for call in waits if call.child is not None})
        self.host.journal.add(
            Entry(
                self,
                move=Move(
                    "waiting",
                    wake_at=first,
                    waiting_signals="\n".join(signals) or None,
                    waiting_children="\n".join(children) or None,
                ),
            )
        )

    # -- what the journal says ----------------------------------------------------------------------------------------

    def recorded(self, row: JournalRow) -> None:
        """`row` is committed."""
        self.named = True
        reach("step.after_commit", self.run_id, row.name)
        if self.unwritten_patches:
            self.unwritten_patches.pop(row.seq, None)
        self.settle(row.seq, row)

    def refused(self, row: JournalRow, reason: str) -> None:
        """Postgres cannot hold `row`: its step fails in its place."""
        if self.closed:
            return
        if row.error is not None and "OutcomeRefused" in row.error:
            self.failed(WorkflowMisuse(f"{row.kind} {row.name!r} cannot be journaled: {reason}"))
            return
        self.busy -= 1
        row.outcome, row.result, row.kind = "error", None, row.kind if row.kind != "retry" else "step"
        row.error = encode({"type": "OutcomeRefused", "message": reason.replace("\x00", "")}, what="error")
        self.write(row)

    def fenced(self) -> None:
        """Another process holds the run: drop it, at once."""
        if not self.closed:
            log.info("run dropped: its epoch has moved on", action="run.fenced", run_id=self.run_id, epoch=self.epoch)
            self.host.fences += 1
            self.close()

    def failed(self, error: BaseException) -> None:
        """The engine failed over this run: it stops with what is known, and keeps no other run from going on."""
        if self.leaving:
            self.close()
        else:
            self.host.engine_failed(self, error)

    def ended(self, move: Move, *, joined: bool) -> None:
        """The run has ended in the commit of its last step's row: its code is not asked any more."""
        self.host.journal.moved(Entry(self, move=move, joined=joined))

    def moved(self, move: Move) -> None:
        """`move` is committed: the run ended, or waits elsewhere."""
        reach("wait.after" if move.status in ("waiting", "paused") else "end.after", self.run_id)
        self.close()
