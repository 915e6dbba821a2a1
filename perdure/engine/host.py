"""What an execution asks of the process that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.clock import Clock
    from perdure.engine.counts import Counts
    from perdure.engine.events import Events
    from perdure.engine.execution import Execution
    from perdure.engine.journal import Journal
    from perdure.engine.steps import StepCall
    from perdure.settings import Settings
    from perdure.store.postgres import Pool, Warm


class Host(Protocol):
    """The worker, as executions see it."""

    loop: asyncio.AbstractEventLoop
    clock: Clock
    journal: Journal
    events: Events
    pool: Pool
    queries: Mapping[str, str]
    threads: Executor
    settings: Settings
    linger: float  # seconds that a waiting run stays in memory
    cancel_grace: float
    always_replay: bool  # a run leaves memory at every await, so that code which does not replay is found at once
    fences: int
    steps_running: int
    counts: Counts
    transactions: asyncio.Semaphore
    connections: Warm  # for what is done under `transactions`, and for what is short

    def may_start(self, execution: Execution) -> bool:
        """Whether a step of `execution` may begin now."""

    async def wait_for_lease(self, execution: Execution) -> None:
        """Come back when a step of `execution` may begin."""

    def newest_config(self) -> AgentConfig:
        """The configuration that is live in this process."""

    def want_signals(self, execution: Execution) -> None:
        """Read the mailbox of a run, soon."""

    def want_children(self, execution: Execution) -> None:
        """Read how the children of a run are, soon."""

    async def looked(self, execution: Execution) -> None:
        """Come back when the signals and the children of a run were read once more, and handed to whoever waits."""

    def cancel_child(self, parent: str, child: str) -> None:
        """Ask a child to end, soon: its parent waits no longer."""

    def step_failed(self, call: StepCall, error: BaseException, attempt: int, pause: float | None) -> None:
        """A try of a step failed: log it, count it."""

    def engine_failed(self, execution: Execution, error: BaseException) -> None:
        """A fault of the engine itself: give the run back."""

    def replay(self, execution: Execution) -> None:
        """Begin the run anew from its journal, under the epoch it has: what `always_replay` does at every await."""

    def closed(self, execution: Execution) -> None:
        """The execution has left memory."""
