"""What an execution asks of the process that holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.clock import Clock
    from perdure.engine.events import Events
    from perdure.engine.execution import Execution
    from perdure.engine.journal import Journal
    from perdure.engine.steps import StepCall
    from perdure.settings import Settings
    from perdure.store.postgres import Pool


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
    fences: int

    @property
    def leased(self) -> bool:
        """Whether this process may start a step now."""

    async def wait_for_lease(self) -> None:
        """Come back when this process may start a step."""

    def newest_config(self) -> AgentConfig:
        """The configuration that is live in this process."""

    def snapshot(self, digest: str) -> AgentConfig:
        """A configuration that the journal names."""

    def want_signals(self, execution: Execution) -> None:
        """Read the mailbox of a run, soon."""

    def want_children(self, execution: Execution) -> None:
        """Read how the children of a run are, soon."""

    def cancel_run(self, run_id: str, reason: str) -> None:
        """Ask a run to end, soon."""

    def step_failed(self, call: StepCall, error: BaseException, attempt: int, pause: float | None) -> None:
        """A try of a step failed: log it, count it."""

    def engine_failed(self, execution: Execution, error: BaseException) -> None:
        """A fault of the engine itself: give the run back."""

    def closed(self, execution: Execution) -> None:
        """The execution has left memory."""
