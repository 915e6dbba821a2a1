"""`step.started` is told of every step at leisure, and under load of each that lasts: before its end, and once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.engine import Context, Retry, StepContext, events, workflow
from tests.platform import in_process
from tests.support import eventually


class Mixed(BaseAgent):
    name = "mixed"
    heard: list[dict[str, Any]]

    @workflow
    async def run(self, ctx: Context, task: dict) -> None:
        await ctx.step("quick", self.quick)
        await ctx.step("slow", self.slow)
        await ctx.step("talks", self.talks)
        await ctx.step("again", self.again, retry=Retry(max_attempts=2, delay=0.5, jitter=False))

    async def quick(self) -> None: ...

    async def slow(self) -> None:
        await eventually(lambda: _of(self.heard, "step.started", "slow"))

    async def again(self, step: StepContext) -> None:
        if step.attempt == 1:
            raise OSError("not yet")
        # nothing else is told at that moment
        await eventually(lambda: any(event["data"].get("attempt") == 2 for event in self.heard))

    async def talks(self, step: StepContext) -> None:
        await step.progress(0.5)


def _of(heard: list[dict[str, Any]], kind: str, name: str) -> list[int]:
    return [at for at, event in enumerate(heard) if event["type"] == kind and event["data"].get("name") == name]


@pytest.mark.parametrize("leisure", [True, False])
async def test_a_step_is_announced_while_it_runs_and_one_that_is_over_at_once_under_load_is_not(
    settings, nc, monkeypatch, leisure
):
    if not leisure:
        monkeypatch.setattr(events, "AT_LEISURE", 0)
        # Long enough that no step of the test which does not wait is still under way after it.
        monkeypatch.setattr("perdure.bus.outgoing.MOMENT", 0.2)
    heard: list[dict[str, Any]] = []

    async def note(message: Any) -> None:
        heard.append(orjson.loads(message.data))

    await nc.subscribe("run.events.*", cb=note)

    class Mine(Mixed):
        name = "mixed"

    Mine.heard = heard
    async with in_process(settings, nc, Mine) as platform:
        await platform.start_run("mixed", {})
        await eventually(lambda: any(event["type"] == "run.completed" for event in heard))
        (process,) = [service for service in platform.services if isinstance(service, AgentProcess)]
        assert not process.worker.events._begun
    assert heard[-1]["type"] == "run.completed"
    for name in ("quick", "slow", "talks"):
        assert len(_of(heard, "step.completed", name)) == 1
    assert len(_of(heard, "step.started", "quick")) == int(leisure)
    for name in ("slow", "talks"):
        (began,), (ended,) = _of(heard, "step.started", name), _of(heard, "step.completed", name)
        assert began < ended
    (said,) = [event for event in heard if event["type"] == "tool.progress"]
    (began,) = [event for event in heard if event["type"] == "step.started" and event["data"]["name"] == "talks"]
    assert began["data"]["index"] < said["data"]["index"], "what a step says comes after its beginning"
