"""Reads, grouped, what runs in memory wait for: signals, ended children, a request to cancel or to pause."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from perdure.engine.stored import OUTCOME, REASON, open_columns, signal_spot, unreadable
from perdure.engine.waits import ChildCall, SignalCall
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.vault import Unreadable

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
        self._readers: list[asyncio.Future[None]] = []  # who waits for the next reading
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

    async def looked(self, execution: Execution) -> None:
        """The same, and come back when it is read."""
        reader = asyncio.get_running_loop().create_future()
        self._readers.append(reader)
        self.look(execution)
        self._wake.set()
        await reader

    def _ask(self, execution: Execution, of: dict[str, Execution]) -> None:
        if execution.closed or execution.leaving:
            return
        if of.get(execution.run_id) is not execution:
            of[execution.run_id] = execution
            execution.busy += 1  # until it was looked at
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_EVERY
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._wake.wait()
            if loop.time() >= look_at:
                look_at = loop.time() + LOOK_EVERY
                await self._look_at_all()
            self._wake.clear()
            if self._signals or self._children or self._readers:
                await self._read()

    async def _read(self) -> None:
        """Read what was asked for; what could not be read stays asked for."""
        signals, self._signals = self._signals, {}
        children, self._children = self._children, {}
        readers = [*self._readers]
        try:
            ended = await self._fetch_children(children)
            sent = await self._fetch_signals(signals)
            # Read last: whoever cancels a tree cancels the parent first, so a child's end never hides a cancellation.
            asked = await self._fetch_asked({**signals, **children})
        except CONNECTION_ERRORS as error:
            log.info("mailbox not read", action="mailbox.retry", error=type(error).__name__)
            for execution in signals.values():
                self._ask(execution, self._signals)
            for execution in children.values():
                self._ask(execution, self._children)
            self._let_go([*signals.values(), *children.values()])
            await asyncio.sleep(0.2)
            return
        for record in asked:
            self._heed(record)
        self._hand_signals(signals, sent)
        self._hand_children(children, ended)
        del self._readers[: len(readers)]
        for reader in readers:
            if not reader.done():  # its timer may be over with
                reader.set_result(None)
        self._let_go([*signals.values(), *children.values()])

    @staticmethod
    def _let_go(executions: list[Execution]) -> None:
        for execution in executions:
            if not execution.closed:
                execution.busy -= 1
                execution.pump()

    async def _look_at_all(self) -> None:
        for execution in list(self._worker.executions.values()):
            if any(call.signal is not None or call.child is not None for call in execution.pending.values()):
                self.look(execution)
        with contextlib.suppress(*CONNECTION_ERRORS):  # the next look is a second away
            for record in await self._fetch_asked(self._worker.executions):
                self._heed(record)

    async def _fetch_asked(self, wanted: Mapping[str, Execution]) -> list[Any]:
        if not wanted:
            return []
        records = await self._worker.pool.fetch(self._worker.queries["asked_for"], list(wanted))
        return await open_columns(self._worker.pool, records, REASON)

    def _heed(self, record: Any) -> None:
        execution = self._worker.executions.get(record["run_id"])
        if execution is None:
            return
        if execution.epoch < record["epoch"]:
            execution.fenced()  # it was ended, or given to another process
        elif execution.epoch == record["epoch"] and record["running"]:
            if record["cancel_reason"] is not None:
                execution.cancel(str(record["cancel_reason"]))  # a reason that cannot be opened says so
            elif record["pause_asked"]:
                execution.pause()

    async def _fetch_signals(self, wanted: Mapping[str, Execution]) -> list[Any]:
        waiting = [run_id for run_id, execution in wanted.items() if self._waits(execution)]
        if not waiting:
            return []
        pool = self._worker.pool
        records = await pool.fetch(self._worker.queries["unconsumed_signals"], waiting)
        return await open_columns(
            pool, records, {"payload": lambda record: signal_spot(record["run_id"], record["name"])}
        )

    @staticmethod
    def _waits(execution: Execution) -> bool:
        return any(call.signal is not None for call in execution.pending.values())

    @staticmethod
    def _hand_signals(wanted: Mapping[str, Execution], records: list[Any]) -> None:
        for record in records:
            execution = wanted[record["run_id"]]
            if execution.closed or execution.leaving or record["seq"] in execution.taken:
                continue
            for call in list(execution.pending.values()):
                if isinstance(call, SignalCall) and call.signal == record["name"] and not call.abandoned:
                    if isinstance(record["payload"], Unreadable):
                        execution.block(unreadable(record["payload"]))
                        break
                    execution.taken.add(record["seq"])
                    call.take(record["seq"], record["payload"])
                    break

    async def _fetch_children(self, wanted: Mapping[str, Execution]) -> list[Any]:
        children = {call.child for execution in wanted.values() for call in _children_of(execution)}
        if not children:
            return []
        pool = self._worker.pool
        records = await pool.fetch(self._worker.queries["children"], list(children))
        return await open_columns(
            pool,
            records,
            OUTCOME,
        )

    @staticmethod
    def _hand_children(wanted: Mapping[str, Execution], records: list[Any]) -> None:
        found = {record["run_id"]: record for record in records}
        for execution in wanted.values():
            for call in _children_of(execution):
                record = found.get(call.child)
                if record is None or execution.closed or execution.leaving or call.abandoned:
                    continue
                if record["ended"] or record["task_hash"] != call.start.task_hash:
                    said = next(
                        (each for each in (record["output"], record["error"]) if isinstance(each, Unreadable)), None
                    )
                    if said is not None:
                        execution.block(unreadable(said))
                    else:
                        call.ended(record)


def _children_of(execution: Execution) -> list[ChildCall]:
    return [call for call in execution.pending.values() if isinstance(call, ChildCall) and call.child is not None]
