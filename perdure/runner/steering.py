"""What `AgentRunner` does with runs beside running them: watch, list, cancel, resume; and agents that wait for work."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

from perdure.client import Client
from perdure.client.types import RunEvent, RunPage
from perdure.runner.load import AnyAgent
from perdure.settings import Settings


class Steering(ABC):
    """Everything here uses the platform as any program does: over NATS, in the event loop of whoever calls."""

    @abstractmethod
    def _submit(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do `work` in the runner's own loop; a concurrent future of its outcome."""

    @abstractmethod
    async def _started(self, agent: AnyAgent) -> Any:
        """The process of `agent`, started if it was not."""

    @abstractmethod
    async def _platform(self) -> Settings:
        """Where the platform is, started if there was none."""

    def subscribe(self, agent: AnyAgent) -> None:
        """Let `agent` work here from now on: it takes runs, `task.<agent>` messages and its triggers, until `shutdown`.

        Comes back once it does. Raises `SetupError` when the platform or the agent cannot be started. In async code
        use `await asyncio.to_thread(runner.subscribe, agent)`.
        """
        self._submit(self._started(agent)).result()

    async def run_stream(
        self, agent: AnyAgent, task: str | dict[str, Any], *, session_id: str | None = None
    ) -> AsyncGenerator[RunEvent]:
        """Run `agent` on `task` and tell each event of the run as it comes; the terminal event is the last.

        ```python
        async for event in runner.run_stream(agent, "Write a haiku"):
            if event["type"] == "llm.delta":
                print(event["data"]["text"], end="")
        ```

        The output stands in `run.completed`, the error in `run.failed`: nothing is raised for a run that fails. Leaving
        the loop early leaves the run going.
        """
        await asyncio.wrap_future(self._submit(self._started(agent)))
        async with Client(await self._where()) as client:
            run = await client.start(agent.name, task, session_id=session_id)
            async with aclosing(run.events()) as events:
                async for event in events:
                    yield event

    async def list(
        self,
        agent: AnyAgent | str | None = None,
        *,
        status: str | None = None,
        session_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs of `agent`, or of all, newest first, as `Client.list` gives them."""
        name = agent if agent is None or isinstance(agent, str) else agent.name
        async with Client(await self._where()) as client:
            return await client.list(agent=name, status=status, session_id=session_id, limit=limit, cursor=cursor)

    async def pause(self, run_id: str) -> None:
        """Let a run begin nothing new until it is resumed. Raises `NotFound`, and `Conflict` when it has ended."""
        async with Client(await self._where()) as client:
            await (await client.get(run_id)).pause()

    async def resume(self, run_id: str) -> None:
        """Bring back a failed, dead, blocked, paused or reviewed run. Raises `NotFound`, and `Conflict` for others."""
        async with Client(await self._where()) as client:
            await client.resume(run_id)

    async def cancel(self, run_id: str, reason: str | None = None) -> None:
        """Ask a run and its children to end as `cancelled`; one that has ended stays as it is. Raises `NotFound`."""
        async with Client(await self._where()) as client:
            await (await client.get(run_id)).cancel(reason)

    async def _where(self) -> Settings:
        settings: Settings = await asyncio.wrap_future(self._submit(self._platform()))
        return settings
