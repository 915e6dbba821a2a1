"""Agents that another agent calls, run in its process too: a team's members, an agent given as a tool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from perdure.agent.base import BaseAgent, Resources

if TYPE_CHECKING:
    from perdure.agent.process import AgentProcess

_hosted: set[int] = set()  # agents that run in this process already, by the identity of the object


class Companions:
    """Replicas of some agents inside this process. Each is a replica like any other: elsewhere there may be more."""

    def __init__(self, agents: Iterable[BaseAgent]) -> None:
        self._agents = list(agents)
        self._running: list[tuple[BaseAgent, AgentProcess]] = []

    async def start(self, resources: Resources) -> None:
        """Start those that do not run here yet."""
        from perdure.agent.process import AgentProcess  # noqa: PLC0415  (a process is made of agents)

        for agent in self._agents:
            if id(agent) in _hosted:
                continue
            _hosted.add(id(agent))
            name = f"{resources.settings.instance_id}-{agent.name}"
            process = AgentProcess(agent, resources.settings.model_copy(update={"instance_id": name}))
            try:
                await process.start()
            except BaseException:
                _hosted.discard(id(agent))
                raise
            self._running.append((agent, process))

    async def stop(self) -> None:
        """Drain and stop those that `start` has started."""
        while self._running:
            agent, process = self._running.pop()
            try:
                await process.stop()
            finally:
                _hosted.discard(id(agent))
