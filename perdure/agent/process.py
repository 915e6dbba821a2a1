"""The process of one agent: connects, fetches the configuration, builds the agent, executes its runs, drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import structlog

from perdure.agent.base import BaseAgent, Resources
from perdure.agent.declaring import Declaring
from perdure.agent.description import description_of
from perdure.agent.intake import Triggers
from perdure.bus.service import Service
from perdure.config.callbacks import call_back
from perdure.config.client import CALLBACK, ConfigClient
from perdure.config.messages import ConfigUpdate
from perdure.config.snapshot import AgentConfig
from perdure.engine.clock import Clock
from perdure.engine.counts import readings
from perdure.engine.hot_state import HotState
from perdure.engine.traces import RunTraces
from perdure.engine.worker import Worker
from perdure.errors import SetupError
from perdure.observe.health import Finding
from perdure.observe.logging import set_level
from perdure.observe.metrics import Reading
from perdure.settings import Settings

if TYPE_CHECKING:
    from perdure.agent.prompt_protocol import PromptProtocol

log = structlog.get_logger(__name__)


class AgentProcess(Service):
    """Runs one agent, given as a `BaseAgent` subclass (built after the first fetch) or as an instance."""

    service_name: ClassVar[str] = "agent"
    description: ClassVar[str] = "an agent"
    tags: ClassVar[tuple[str, ...]] = ("agent",)

    def __init__(
        self,
        agent: type[BaseAgent] | BaseAgent,
        settings: Settings | None = None,
        *,
        clock: Clock | None = None,
        linger: float = 0.2,
    ) -> None:
        self._given = agent
        self._linger = linger
        super().__init__(settings)
        self._clock = clock
        self._agent: BaseAgent | None = None
        self._config: ConfigClient | None = None
        self._worker: Worker | None = None
        self._triggers: Triggers | None = None
        self._protocol: PromptProtocol | None = None
        self._level_said = ""  # what the configuration says of it

    @property
    def name(self) -> str:
        """The agent's name."""
        return self._given.name

    @property
    def agent(self) -> BaseAgent:
        """The agent, once the process has started."""
        if self._agent is None:
            raise SetupError(f"agent {self.name} is built when its process starts")
        return self._agent

    @property
    def worker(self) -> Worker:
        """What executes the runs, once the process has started."""
        if self._worker is None:
            raise SetupError(f"agent {self.name} executes runs once its process has started")
        return self._worker

    def metadata(self) -> dict[str, str]:
        """What discovery shows: the agent and the configuration revision it stands on."""
        revision = str(self._config.snapshot.revision) if self._config and self._agent else ""
        return {**super().metadata(), "agent": self.name, "config_revision": revision}

    def describe(self) -> str:
        """What discovery says of the agent: its docstring, or its persona."""
        return description_of(self.agent) or self.description

    def details(self) -> dict[str, Any]:
        """What discovery says of the agent's tools."""
        return {"tools": self.agent.offers()}

    async def on_start(self) -> None:
        """Fetch, build, register, work."""
        self._config = ConfigClient(
            nats=self.nats,
            redis=self.redis,
            settings=self.settings,
            agent_name=self.name,
            instance_id=self.instance_id,
            settings_model=self._given.Settings,
            on_change=self._changed,
        )
        config = await self._config.start()
        self._agent = self._given if isinstance(self._given, BaseAgent) else self._given(config)
        self._agent.bind(Resources(self.settings, self.nats, self.pool, self.redis, self.traces), config)
        self._level(config)
        workflows = self._agent.workflows()
        if not workflows:
            raise SetupError(f"agent {self.name} has no workflow: mark async def run(self, ctx, task) with @workflow")
        declaring = Declaring(self._agent, self.pool)
        await self._agent.on_start()
        hot_state = HotState(self.redis)
        self.spawn(hot_state.run, name="hot-state")
        self._worker = Worker(
            settings=self.settings,
            agent_name=self.name,
            workflows=workflows,
            nats=self.nats,
            pool=self.pool,
            config=self,
            hot_state=hot_state,
            clock=self._clock,
            linger=self._linger,
            traces=RunTraces(self.traces, self.instance_id, self._agent.operation) if self.traces else None,
        )
        await self._worker.start()
        self.metrics.add(self._readings)
        self.health.add("lease", self._check_lease)
        self.health.add("config", self._check_config)
        self._triggers = Triggers(self._agent, workflows, self._agent.resources)
        await self._triggers.start()
        self.spawn(declaring.run, name="schedules")
        if "run" in workflows and self.settings.agent_prompts:
            # in a thread: it brings every kind of agent along, which an agent without a model has not loaded
            module = await asyncio.to_thread(import_module, "perdure.agent.prompt_protocol")
            self._protocol = module.PromptProtocol(self._agent, self._agent.resources, version=self.version)
            await self._protocol.start()

    async def abort(self) -> None:
        """End as a killed process does: nothing is drained, given back or said. For tests of authors."""
        worker, self._worker = self.worker, None
        await worker.abort()
        await self.stop()

    async def on_stop(self) -> None:
        """Take no more messages, drain the runs, then let the agent close what it opened."""
        if self._protocol is not None:
            await self._protocol.stop()
        if self._triggers is not None:
            await self._triggers.stop()
        if self._worker is not None:
            await self._worker.drain()
        if self._agent is not None and self._agent._resources is not None:  # noqa: SLF001 -- bound by this class
            await self._agent.on_stop()
        if self._config is not None:
            await self._config.stop()

    async def on_reconnect(self) -> None:
        """NATS was away: read the configuration again, and look whether the stream is still there."""
        if self._config is not None:
            await self._config.reconcile()
        if self._worker is not None:
            await self._worker.on_reconnect()
        if self._triggers is not None:
            self._triggers.reset()

    async def _check_lease(self) -> Finding:
        if self._worker is None or self._worker.leased:
            return "ok", "held"
        return "critical", "the lease is over: Postgres has not renewed it, and no step begins until it has"

    async def _check_config(self) -> Finding:
        snapshot = self.newest()
        if snapshot.held:
            return "warning", "; ".join(f"{key} is held: {why}" for key, why in sorted(snapshot.held.items()))[:1000]
        if self._config is not None and self._config.stale:
            return "warning", f"no ConfigManager answers; going on with revision {snapshot.revision}"
        return "ok", f"revision {snapshot.revision}"

    def _readings(self) -> Iterator[Reading]:
        if self._worker is not None:
            yield from readings(self._worker)
        if self._config is not None:
            yield from self._config.readings()
        if self._agent is not None:
            yield from self._agent.readings()
        if self._triggers is not None:
            yield "perdure_dead_letters_total", (self.name,), self._triggers.buried

    # -- configuration, as the worker asks for it ---------------------------------------------------------------------

    def newest(self) -> AgentConfig:
        """The snapshot that is live in this process."""
        if self._config is None:
            raise SetupError("the configuration is read when the agent starts")
        return self._config.snapshot

    def rebuild(self, values: Mapping[str, str], revision: int) -> AgentConfig:
        """A snapshot of an earlier time, from its rows."""
        return AgentConfig.from_row(
            values, agent_name=self.name, revision=revision, settings_model=self._given.Settings
        )

    async def _changed(self, update: ConfigUpdate, config: AgentConfig) -> Mapping[str, str]:
        before = self.agent.config
        self.agent.adopt(config)
        self._level(config)
        errors = await call_back(self.agent, before, config)
        try:
            await self.agent._handle_config_update(update)  # noqa: SLF001 -- the author's hook, named by the contract
        except Exception as error:
            log.exception("the agent's config callback failed", action="config.callback_failed", agent=self.name)
            errors[CALLBACK] = f"{type(error).__name__}: {error}"
        return errors

    def _level(self, config: AgentConfig) -> None:
        level = config.values.get("log_level", "")
        if level == self._level_said:
            return  # a program that holds agents keeps the level that it has chosen
        self._level_said = level
        try:
            set_level(level or self.settings.log_level)
        except ValueError as error:
            log.warning(str(error), action="agent.bad_log_level", agent=self.name)
