"""A platform in the test's process whose agent or scheduler is killed at a named point, and replaced at once.

A kill in the process raises where the point stands, and takes everything else of that part from the loop before it gets
another turn: no row is written, nothing is sent and no `finally` of it reaches a server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus import wire
from perdure.engine import points
from perdure.errors import PerdureError, RunSuspended
from perdure.settings import Settings
from services.scheduler.service import Scheduler
from tests.platform import InProcess, in_process
from tests.support import eventually

_part: ContextVar[str] = ContextVar("part", default="")


class Killed(BaseException):
    """Nobody catches it: the coroutine that is at the point ends there."""


@dataclass
class Kill:
    """One kill: where, of whom, and whether it has struck."""

    point: str
    part: str
    run_id: str = ""
    name: str = ""
    struck: bool = False
    held: frozenset[str] = frozenset()  # the runs that were in memory


@dataclass
class Rig:
    """The platform, and the parts that are replaced when they are killed."""

    platform: InProcess
    settings: Settings
    kind: type[BaseAgent]
    agent: AgentProcess = field(init=False)
    scheduler: Scheduler = field(init=False)
    kill: Kill | None = None
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    replacing: asyncio.Task[None] | None = None
    number: int = 0

    async def start_agent(self) -> None:
        """A replica; what it does is known as the agent's."""
        self.agent = await self._start("agent", lambda settings: AgentProcess(self.kind, settings, linger=0.05))

    async def start_scheduler(self) -> None:
        """A scheduler; what it does is known as the scheduler's."""
        self.scheduler = await self._start("scheduler", Scheduler)

    async def _start(self, part: str, make: Any) -> Any:
        self.number += 1
        service = make(self.settings.model_copy(update={"instance_id": f"{part}-{self.number}"}))
        # Whatever a service does, it does in tasks that were begun below its start, and so have this context.
        await asyncio.create_task(self._as(part, service))
        self.platform.services.append(service)
        return service

    @staticmethod
    async def _as(part: str, service: Any) -> None:
        _part.set(part)
        await service.start()

    # -- kills --------------------------------------------------------------------------------------------------------

    def reached(self, point: str, run_id: str, name: str) -> None:
        """The hook: counts attempts, and strikes once."""
        if point == "step.before":
            self.attempts[run_id, name] += 1
        kill = self.kill
        if kill is None or kill.struck or (point, _part.get()) != (kill.point, kill.part):
            return
        if (kill.run_id not in ("", run_id) and run_id) or kill.name not in ("", name):
            return
        kill.struck = True
        worker = self.agent._worker
        kill.held = frozenset(worker.executions if worker is not None else ())
        if kill.part == "agent":
            self.agent.worker.freeze()
            self.replacing = asyncio.create_task(self._replace_agent(self.agent))
            raise RunSuspended
        _silence(self.scheduler)
        self.replacing = asyncio.create_task(self._replace_scheduler(self.scheduler))
        raise Killed

    async def _replace_agent(self, victim: AgentProcess) -> None:
        self.platform.services.remove(victim)
        await victim.abort()
        await self.start_agent()

    async def _replace_scheduler(self, victim: Scheduler) -> None:
        self.platform.services.remove(victim)
        await victim.nats.close()
        await victim._background.cancel()
        victim.pool.terminate()
        await victim.redis.aclose()
        await self.start_scheduler()

    async def drain(self) -> None:
        """Ask the agent to stop, as a deployment does; it may be killed on the way."""
        await asyncio.gather(asyncio.create_task(self._drain(self.agent)), return_exceptions=True)

    @staticmethod
    async def _drain(agent: AgentProcess) -> None:
        _part.set("agent")
        await agent.worker.drain()

    async def lose_agent(self) -> None:
        """The agent's process dies, and another one is there."""
        victim = self.agent
        victim.worker.freeze()
        await self._replace_agent(victim)

    @contextmanager
    def killing(self, kill: Kill) -> Iterator[Kill]:
        """Within: `kill` strikes once."""
        self.kill, self.replacing = kill, None
        try:
            yield kill
        finally:
            self.kill = None

    async def replaced(self) -> None:
        """Come back when the kill has struck and the part that was killed has a successor."""
        kill = self.kill
        assert kill is not None
        await eventually(lambda: kill.struck, message=f"{kill} strikes")
        assert self.replacing is not None
        await self.replacing

    async def insist(self, subject: str, payload: dict[str, Any]) -> dict[str, Any]:
        """A request that is made again until somebody lives to answer it."""
        while True:
            try:
                return await wire.request(self.platform.nc, subject, payload, timeout=0.4)
            except (PerdureError, TimeoutError, OSError) as error:
                if getattr(error, "code", "unavailable") not in ("unavailable", "internal"):
                    raise
                await asyncio.sleep(0.02)


def _silence(scheduler: Scheduler) -> None:
    """Nothing of it gets another turn, and what it would still say is not heard."""
    intake = scheduler._intake
    waiting = intake._tasks if intake is not None else set()
    running = {task for endpoint in scheduler.endpoints for task in endpoint._running}
    for task in {*scheduler._background._tasks, *waiting, *running}:
        if task is not asyncio.current_task():
            task.cancel()
    scheduler.nats.publish = _nothing  # type: ignore[method-assign]


async def _nothing(*_args: Any, **_more: Any) -> None:
    """A message that a dead process does not send."""


@asynccontextmanager
async def crash_rig(settings: Settings, nc: Client, kind: type[BaseAgent]) -> AsyncIterator[Rig]:
    """A platform whose loops are quick, with one agent and one scheduler."""
    quick = settings.model_copy(update={"redispatch_after": 0.3, "sweep_interval": 0.1, "drain_timeout": 2.0})
    async with in_process(quick, nc) as platform:
        first = platform.services.pop()
        await first.stop()
        rig = Rig(platform, quick, kind)
        remove = points.install(rig.reached)
        try:
            await rig.start_scheduler()
            await rig.start_agent()
            yield rig
        finally:
            remove()
