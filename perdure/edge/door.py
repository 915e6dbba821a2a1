"""What the routes stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from nats.aio.client import Client as Nats
from redis.asyncio import Redis

from perdure.agent.registry import live_agents
from perdure.client import Client
from perdure.edge.callers import Caller
from perdure.edge.endings import Ending, Endings
from perdure.edge.gate import Gate
from perdure.edge.metrics import Load, Metrics
from perdure.edge.together import Together
from perdure.errors import NotFound
from perdure.observe.health import Health
from perdure.observe.metrics import Metrics as Observed
from perdure.settings import Settings
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries

if TYPE_CHECKING:
    from perdure.observe.otel import Traces


_SQL = load_queries("edge.sql")


@dataclass
class Door:
    """The connections of the process that serves, and what it knows of itself.

    `only` is the one agent that a process of `AgentRunner.serve` answers for. `stopping` ends the event streams, whose
    readers then go to another replica.
    """

    settings: Settings
    nats: Nats
    pool: Pool
    redis: Redis
    health: Health
    gate: Gate
    only: str | None = None
    traces: Traces | None = None
    observed: Observed = field(default_factory=Observed)  # what the process counts, the app's own added
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    client: Client = field(init=False)
    endings: Endings = field(init=False)
    load: Load = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client.over(self.nats, self.settings)
        self.endings = Endings(self.nats, self.settings)
        self._runs = Together(self.pool, _SQL["runs_by_id"], what="runs")
        self.load = Load(
            self.settings.gateway_max_requests, self.settings.gateway_max_streams, self.settings.gateway_max_bytes
        )
        self.metrics = Metrics(self.load)
        self.observed.add(self.metrics.readings)

    def agent(self, caller: Caller, name: str) -> str:
        """An agent that this door answers for and the caller may use. Raises `NotFound`, `Forbidden`."""
        if self.only not in (None, name):
            raise NotFound(f"this serves agent {self.only} alone")
        caller.need_agent(name)
        return name

    async def agents(self, caller: Caller) -> list[dict[str, Any]]:
        """The agents with live processes that this door shows the caller: `agent`, `replicas`, `since`; by name."""
        return [
            each
            for each in await live_agents(self.pool)
            if caller.uses(each["agent"]) and self.only in (None, each["agent"])
        ]

    async def close(self) -> None:
        """End what looks things up. The connections stay open."""
        await self._runs.stop()
        await self.gate.keys.stop()

    async def find(self, caller: Caller, run_id: str) -> Mapping[str, Any]:
        """`run_id` as it is known here, `agent`, `status` and `end_seq` of a run. Raises as `look` does."""
        known = caller.known(run_id)
        run = await self._runs.ask(known)
        if run is None or not self.shows(caller, run["agent"], known):
            raise NotFound(f"there is no run {run_id!r}", run_id=run_id)
        return dict(run)

    def ended(self, caller: Caller, run_id: str) -> Ending | None:
        """The events of a run that were read a moment ago and cannot be more, if this door shows them to the caller."""
        known = caller.known(run_id)
        ending = self.endings.kept(known)
        return ending if ending is not None and self.shows(caller, ending.agent, known) else None

    async def look(self, caller: Caller, run_id: str) -> dict[str, Any]:
        """A run without its steps. Raises `NotFound`, also for one that the caller may not see."""
        known = caller.known(run_id)
        unseen = NotFound(f"there is no run {run_id!r}", run_id=run_id)
        if not caller.sees_id(known):
            raise unseen
        try:
            run = await self.client.request("run.get", {"run_id": known, "steps": False}, repeat=True)
        except NotFound:
            raise unseen from None
        if not self.shows(caller, run["agent"], known):
            raise unseen
        return run

    def shows(self, caller: Caller, agent: str, named: str) -> bool:
        """Whether this door shows the caller a run or a conversation of this agent, by its id."""
        return caller.sees(agent, named) and self.only in (None, agent)


def door_of(request: Request) -> Door:
    """The door of the app that answers this request."""
    door = request.app.state.door
    assert isinstance(door, Door)  # noqa: S101 -- set where the app is made
    return door
