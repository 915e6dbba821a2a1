"""How a worker's runs are traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perdure.observe import tracing

if TYPE_CHECKING:
    from perdure.engine.rows import ClaimedRun, JournalRow
    from perdure.observe.otel import RunTrace, Traces


class RunTraces:
    """Makes the traces of claimed runs. `operation` is the word of the GenAI conventions for what they are."""

    def __init__(self, traces: Traces, instance: str, operation: str) -> None:
        self._traces = traces
        self._instance = instance
        self._operation = operation

    def claimed(self, run: ClaimedRun, history: Sequence[JournalRow]) -> RunTrace:
        """The trace of a run that was claimed just now."""
        made = self._traces.of_run(
            run_id=run.run_id,
            agent=run.agent_name,
            workflow=run.workflow,
            session_id=run.session_id,
            header=tracing.usable(run.trace),
            life=run.seq_floor,
            began=run.started_at,
            operation=self._operation,
        )
        made.claimed(run.epoch, earlier(run.epoch, history), self._instance)
        return made


def earlier(epoch: int, history: Sequence[JournalRow]) -> tuple[int, ...]:
    """The epochs that the claim before the one under `epoch` may have had.

    A wait leaves the epoch as it is, a loss or a drain raises it once. What was journaled says which it was; of an
    earlier claim that journaled nothing both are named.
    """
    candidates = tuple(each for each in (epoch - 1, epoch - 2) if each > 0)
    last = history[-1].epoch if history else 0
    return (last,) if last in candidates else candidates
