"""Reads, grouped, what runs in memory wait for: signals, ended children, a request to cancel."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import structlog

from perdure.engine.journal import CONNECTION_ERRORS
from perdure.engine.waits import ChildCall, SignalCall

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.worker import Worker

log = structlog.get_logger(__name__)

LOOK_EVERY = 1.0  # seconds: a nudge may be lost, a look is not


class Mailbox:
    """One poller for all runs of a process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._signals: dict[str, Execution] = {}
        self._children: dict[str, Execution] = {}
        self._asked: set[str] = set()  # runs that are counted busy until they were looked at
        self._taken: defaultdict[str, set[int]] = defaultdict(set)
        self._wake = asyncio.Event()

    def want_signals(self, execution: Execution) -> None:
        """Look for signals of a run, at once; until then it does not suspend."""
        self._ask(execution, self._signals)

    def want_children(self, execution: Execution) -> None:
        """Look how the children of a run are, at once; until then it does not suspend."""
        self._ask(execution, self._children)

    def look(self, execution: Execution) -> None:
        """Somebody said that there is something to see."""
        self._ask(execution, self._signals)
        self._ask(execution, self._children)

    def _ask(self, execution: Execution, of: dict[str, Execution]) -> None:
        if execution.closed or execution.leaving:
            return
        if execution.run_id not in of:
            of[execution.run_id] = execution
            execution.busy += 1
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()
            if not self._wake.is_set():
                await self._look_at_all()
            self._wake.clear()
            while self._signals or self._children:
                signals, self._signals = self._signals, {}
                children, self._children = self._children, {}
                try:
                    await self._read_signals(signals)
                    await self._read_children(children)
                except CONNECTION_ERRORS as error:
                    log.info("mailbox not read", action="mailbox.retry", error=type(error).__name__)
                    await asyncio.sleep(0.2)
                    self._signals = {**signals, **self._signals}
                    self._children = {**children, **self._children}
                    continue
                for execution in [*signals.values(), *children.values()]:
                    if not execution.closed:
                        execution.busy -= 1
                        execution.pump()

    async def _look_at_all(self) -> None:
        for run_id in [run_id for run_id in self._taken if run_id not in self._worker.executions]:
            del self._taken[run_id]
        for execution in list(self._worker.executions.values()):
            if any(call.signal is not None or call.child is not None for call in execution.pending.values()):
                self.look(execution)
        held = [e.run_id for e in self._worker.executions.values()]
        if held:
            with contextlib.suppress(*CONNECTION_ERRORS):  # the next look is a second away
                for record in await self._worker.pool.fetch(self._worker.queries["to_cancel"], held):
                    self._cancel(record)

    def _cancel(self, record: Any) -> None:
        execution = self._worker.executions.get(record["run_id"])
        if execution is not None and execution.epoch == record["epoch"]:
            execution.cancel(record["cancel_reason"])

    async def _read_signals(self, wanted: dict[str, Execution]) -> None:
        if not wanted:
            return
        worker = self._worker
        for record in await worker.pool.fetch(worker.queries["to_cancel"], list(wanted)):
            self._cancel(record)
        waiting = [run_id for run_id, execution in wanted.items() if self._waits(execution)]
        if not waiting:
            return
        records = await worker.pool.fetch(worker.queries["unconsumed_signals"], waiting)
        for record in records:
            execution = wanted[record["run_id"]]
            taken = self._taken[execution.run_id]
            if execution.closed or execution.leaving or record["seq"] in taken:
                continue
            for call in list(execution.pending.values()):
                if isinstance(call, SignalCall) and call.signal == record["name"] and not call.abandoned:
                    taken.add(record["seq"])
                    call.take(record["seq"], record["payload"])
                    break

    @staticmethod
    def _waits(execution: Execution) -> bool:
        return any(call.signal is not None for call in execution.pending.values())

    async def _read_children(self, wanted: dict[str, Execution]) -> None:
        calls = {
            call.child: call
            for execution in wanted.values()
            for call in execution.pending.values()
            if isinstance(call, ChildCall) and call.child is not None
        }
        if not calls:
            return
        records = await self._worker.pool.fetch(self._worker.queries["children"], list(calls))
        for record in records:
            call = calls[record["run_id"]]
            gone = call.execution.closed or call.execution.leaving or call.child is None or call.abandoned
            if not gone and (record["ended"] or record["task_hash"] != call.start.task_hash):
                call.ended(record)
