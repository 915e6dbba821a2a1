"""The platform inside a test's own process: real servers, a ConfigManager, a scheduler, and the agents of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from config_manager.service import ConfigManager
from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus import wire
from perdure.bus.service import Service
from perdure.settings import Settings
from services.scheduler.service import Scheduler


@dataclass
class InProcess:
    """Services of one test, started in order and stopped in reverse."""

    settings: Settings
    nc: Client
    services: list[Service] = field(default_factory=list)

    async def start(self, service: Service) -> Any:
        """Start one more."""
        await service.start()
        self.services.append(service)
        return service

    async def agent(self, agent: type[BaseAgent] | BaseAgent, **changed: Any) -> AgentProcess:
        """Start a replica of an agent, with an instance id of its own."""
        number = len(self.services)
        settings = self.settings.model_copy(update={"instance_id": f"replica-{number}", **changed})
        process: AgentProcess = await self.start(AgentProcess(agent, settings))
        return process

    async def ask(self, agent: str, task: Any, *, timeout: float = 20.0, **more: Any) -> dict[str, Any]:
        """`run.ask`, as any client would."""
        return await wire.request(
            self.nc, f"run.ask.{agent}", {"task": task, "timeout": timeout, **more}, timeout=timeout + 5
        )

    async def start_run(self, agent: str, task: Any, **more: Any) -> str:
        """`run.start`; the run id."""
        return str((await wire.request(self.nc, f"run.start.{agent}", {"task": task, **more}))["run_id"])

    async def run(self, run_id: str) -> dict[str, Any]:
        """`run.get`."""
        return await wire.request(self.nc, "run.get", {"run_id": run_id})

    async def request(self, subject: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Any request."""
        return await wire.request(self.nc, subject, payload)


@asynccontextmanager
async def in_process(settings: Settings, nc: Client, *agents: type[BaseAgent] | BaseAgent) -> AsyncIterator[InProcess]:
    """A running platform with these agents."""
    platform = InProcess(settings, nc)
    try:
        await platform.start(ConfigManager(settings.model_copy(update={"instance_id": "config"})))
        await platform.start(Scheduler(settings.model_copy(update={"instance_id": "scheduler"})))
        for agent in agents:
            await platform.agent(agent)
        yield platform
    finally:
        for service in reversed(platform.services):
            await service.stop()
