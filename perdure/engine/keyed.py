"""Runs that a workflow starts under a key of deduplication or of debouncing: which run it is, Postgres says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perdure import subjects
from perdure.engine.accepting import take_key
from perdure.engine.codec import decode, encode
from perdure.engine.steps import TransactionCall
from perdure.engine.waits import ChildCall
from perdure.store.postgres import PooledConnection, keeps_session

if TYPE_CHECKING:
    from perdure.engine.branch import Branch
    from perdure.engine.execution import Execution
    from perdure.engine.rows import JournalRow, Start


class KeyedStart(TransactionCall):
    """Starts a run, or finds the one that has its key; the key and the row of this call are one commit."""

    kind = "start"
    __slots__ = ("_change", "_start", "_woken")

    def __init__(
        self, execution: Execution, branch: Branch, start: Start, digest: str, change: Callable[[Any], Any]
    ) -> None:
        super().__init__(execution, branch, start.agent_name, digest, _nothing, (), {}, None, None)
        self._start = start
        self._change = change
        self._woken: str | None = None

    async def _run(self, kwargs: dict[str, Any]) -> Any:  # noqa: ARG002 -- there is no function of an author
        @keeps_session
        async def work(connection: PooledConnection) -> str:
            start = replace(self._start)  # each try decides anew
            status = await take_key(connection, start, self.execution.host.clock.now())
            self._woken = start.run_id if status == "pending" else None
            return encode({"run_id": start.run_id, "agent": start.agent_name}, what="child")

        return await self._commit(work, work)

    def _succeeded(self, value: Any, attempt: int, started: datetime) -> None:
        super()._succeeded(value, attempt, started)
        if self._woken is not None:
            self.execution.host.events.publish(subjects.work(self._start.agent_name), self._woken.encode())

    def on_row(self, row: JournalRow) -> None:
        """Which run it came to be."""
        if row.kind == "start" and row.outcome == "ok":
            self.resolve(self._change(decode(row.result)))
        else:
            super().on_row(row)


class JoinedCall(ChildCall):
    """Waits for a run that others may wait for, too, whatever its task is."""

    __slots__ = ()

    def ended(self, record: Any) -> None:
        """The run that has the key has ended; or it has not, and is seen for the first time."""
        self.start.task_hash = record["task_hash"]
        if record["ended"]:
            super().ended(record)


async def _nothing() -> None: ...
