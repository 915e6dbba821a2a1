"""Says which schedules an agent's code declares, from its process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import structlog

from perdure.agent.base import BaseAgent
from perdure.agent.triggers import OnClock, triggers_of
from perdure.schedules.declared import SAY_EVERY, Declaration, Declared
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool

MOST_MISSED: Final = 1000
RETRY: Final = 1.0

log = structlog.get_logger(__name__)


class Declaring:
    """Keeps an agent's declaration up as long as its process lives."""

    def __init__(self, agent: BaseAgent, pool: Pool) -> None:
        self._agent = agent.name
        self._declaration = Declaration(pool, agent.name, schedules_of(agent))

    async def run(self) -> None:
        """Say it until cancelled, or until it is known that nothing is to be said."""
        while await self.say():
            await asyncio.sleep(SAY_EVERY)

    async def say(self) -> bool:
        """Say it once, whenever Postgres can be reached; whether it must be said again."""
        while True:
            try:
                return await self._declaration.say()
            except CONNECTION_ERRORS as error:
                log.warning(
                    "the agent's schedules wait for Postgres", action="schedules.not_declared",
                    agent=self._agent, error=type(error).__name__,
                )  # fmt: skip
                await asyncio.sleep(RETRY)


def schedules_of(agent: BaseAgent) -> Sequence[Declared]:
    """The schedules that the code of an agent declares. Raises `ValueError` when two of them contradict each other."""
    found: dict[str, Declared] = {}
    clocks: dict[tuple[str, str, str], OnClock] = {}
    for workflow, trigger in triggers_of(agent):
        if not isinstance(trigger, OnClock):
            continue
        moments = (workflow, trigger.schedule.text, trigger.schedule.zone.key)
        if moments in clocks:  # methods of several versions of a workflow may each have it
            if clocks[moments] != trigger:
                said = f"{trigger.schedule.text!r} of {workflow!r}"
                raise ValueError(f"agent {agent.name} has the schedule {said} twice, with different options")
            continue
        clocks[moments] = trigger
        one = _declared(workflow, trigger, found)
        if one.name in found:
            raise ValueError(
                f"agent {agent.name} has two schedules called {one.name!r}: give one of them another name="
            )
        found[one.name] = one
    return list(found.values())


def _declared(workflow: str, trigger: OnClock, before: dict[str, Declared]) -> Declared:
    name = trigger.name
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", workflow)[:100]
        if more := sum(each.workflow == workflow for each in before.values()):
            name = f"{name}-{more + 1}"
    return Declared(
        name=name,
        workflow=workflow,
        cron=trigger.schedule.text,
        timezone=trigger.schedule.zone.key,
        missed="all" if trigger.catch_up else "latest",
        missed_limit=MOST_MISSED if trigger.catch_up else 1,
        overlap=trigger.overlap,
    )
