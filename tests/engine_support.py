"""What the engine's tests share: looking at runs, losing them, and losing Postgres's answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from perdure.agent.process import AgentProcess
from perdure.engine import points, runs
from perdure.engine.execution import Execution
from tests.platform import InProcess
from tests.support import eventually


async def until(platform: InProcess, run_id: str, *statuses: str, timeout: float = 10.0) -> dict[str, Any]:
    """The run, once its status is one of `statuses`."""
    seen: dict[str, Any] = {}

    async def there() -> bool:
        seen.update(await platform.run(run_id))
        return seen["status"] in statuses

    await eventually(there, timeout=timeout, message=f"run {run_id} is {' or '.join(statuses)}; it is {seen}")
    return seen


async def signal(platform: InProcess, run_id: str, name: str, payload: Any = None, **more: Any) -> dict[str, Any]:
    """`run.signal`."""
    return await platform.request("run.signal", {"run_id": run_id, "name": name, "payload": payload, **more})


async def lose(process: AgentProcess, execution: Execution) -> None:
    """Take a run out of a process's memory without a word, as a crash does, and give it to the next claimer."""
    execution.close()
    await release(process, execution)


async def release(process: AgentProcess, execution: Execution) -> None:
    """Give a run that has left a process's memory to the next claimer."""
    worker = process.worker
    records = await worker.pool.fetch(worker.queries["release"], [execution.run_id], [execution.epoch])
    for record in records:
        runs.wake(worker.nats, record["run_id"], record["agent_name"])


@contextmanager
def losing(process: AgentProcess, *, only: str | None = None) -> Iterator[list[str]]:
    """Within: a run is lost after each row that it writes, and claimed anew. The list says after which rows."""
    losses: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    def strike(point: str, run_id: str, name: str) -> None:
        execution = process.worker.executions.get(run_id)
        if point == "step.after_commit" and execution is not None and not execution.closed and only in (None, run_id):
            losses.append(name)
            tasks.append(asyncio.get_running_loop().create_task(lose(process, execution)))

    remove = points.install(strike)
    try:
        yield losses
    finally:
        remove()


class _LosingAnswers:
    def __init__(self, pool: Any, every: int) -> None:
        self._pool = pool
        self._every = every
        self.count = self.lost = 0

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        async with self._pool.acquire() as connection:
            yield connection
        self.count += 1
        if self.count % self._every == 0:
            self.lost += 1
            raise ConnectionResetError("the answer is lost; what was done is done")


@contextmanager
def losing_answers(process: AgentProcess, *, every: int = 2) -> Iterator[_LosingAnswers]:
    """Within: every nth commit of the process's journal is made, and then reported as a lost connection."""
    journal = process.worker.journal
    pool = journal.pool
    flaky = _LosingAnswers(pool, every)
    journal.pool = flaky  # type: ignore[assignment]
    try:
        yield flaky
    finally:
        journal.pool = pool


async def at_rest(process: AgentProcess) -> None:
    """Come back when the process holds no run."""
    await eventually(lambda: not process.worker.executions, message="no run is left in memory")
