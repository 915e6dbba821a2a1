from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest

from perdure.agent.base import BaseAgent
from perdure.engine import Context, Retry, StepContext, workflow
from perdure.errors import PermanentError, RetryableError, StepFailed
from tests.engine_support import lose, until
from tests.platform import in_process
from tests.support import eventually

NOW = Retry(max_attempts=3, delay=0.0)


class Failing(BaseAgent):
    name = "failing"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tries: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.hold = threading.Event()

    @workflow
    async def run(self, ctx: Context, task: dict) -> Any:
        function = getattr(self, task["fn"])
        try:
            return await ctx.step(
                task["fn"], function, retry=Retry(**task.get("retry", {"delay": 0.0})), **self.more(task)
            )
        except StepFailed as error:
            return {"failed": error.name, "attempts": error.attempts, "cause": error.cause}

    @workflow
    async def pause(self, ctx: Context, task: dict) -> Any:
        retry = Retry(max_attempts=3, delay=task["delay"], jitter=False)
        try:
            await ctx.step("always", self.always, retry=retry)
        except StepFailed as error:
            await ctx.wait_signal("again")  # so that the run is claimed, and the failure replayed, once more
            return {"attempts": error.attempts, "cause": error.cause["message"]}

    def more(self, task: dict) -> dict:
        return {"timeout": task["timeout"]} if "timeout" in task else {}

    async def always(self, step: StepContext) -> None:
        self.tries["always"] += 1
        self.keys.add(step.idempotency_key)
        raise OSError(f"try {step.attempt}")

    async def permanent(self) -> None:
        self.tries["permanent"] += 1
        raise PermanentError("no use")

    async def later(self, step: StepContext) -> float:
        self.tries["later"] += 1
        if step.attempt == 1:
            raise RetryableError("busy", retry_after=0.05)
        return time.monotonic()

    async def exits(self) -> None:
        sys.exit(3)

    def exits_in_thread(self) -> None:
        sys.exit(3)

    async def base(self) -> None:
        raise KeyboardInterrupt

    async def cancels_itself(self) -> None:
        raise asyncio.CancelledError

    def stops_iteration(self) -> None:
        next(iter(()))

    def in_thread(self) -> str:
        return threading.current_thread().name

    async def slow(self) -> None:
        await asyncio.Event().wait()

    def slow_in_thread(self) -> None:
        self.hold.wait(20)


@pytest.fixture
async def failing(settings, nc):
    async with in_process(settings, nc) as platform:
        yield platform, await platform.agent(Failing)


async def test_steps_end_as_their_errors_say_and_never_end_the_process(failing):
    platform, process = failing
    agent = process.agent

    async def output(fn: str, **more: Any) -> Any:
        reply = await platform.ask("failing", {"fn": fn, **more}, timeout=15)
        assert reply["status"] == "completed", reply
        return reply["output"]

    always = await output("always")
    assert always == {"failed": "always", "attempts": 3, "cause": {"type": "OSError", "message": "try 3"}}
    assert agent.tries["always"] == 3
    assert len(agent.keys) == 1, "the idempotency key is the same for every try"
    assert (await output("permanent"))["attempts"] == agent.tries["permanent"] == 1
    assert await output("later", retry={"delay": 60.0}), "retry_after is stronger than the policy's pause"
    assert (await output("exits"))["cause"]["type"] == "SystemExit"
    assert (await output("exits_in_thread"))["cause"]["type"] == "SystemExit"
    assert (await output("base"))["cause"]["type"] == "KeyboardInterrupt"
    assert (await output("cancels_itself"))["cause"]["type"] == "CancelledError"
    assert (await output("stops_iteration"))["cause"]["type"] == "RuntimeError"
    assert (await output("in_thread")).startswith("failing-step")
    timed_out = await output("slow", timeout=0.01, retry={"max_attempts": 2, "delay": 0.0})
    assert (timed_out["attempts"], timed_out["cause"]["type"]) == (2, "TimeoutError")
    try:
        assert (await output("slow_in_thread", timeout=0.01, retry={"max_attempts": 1}))["cause"][
            "type"
        ] == "TimeoutError"
    finally:
        agent.hold.set()
    assert platform.services[-1] is process
    assert process.worker.steps_running == 0


@pytest.mark.in_memory
async def test_retries_and_their_exhaustion_survive_a_change_of_process(failing, pool):
    platform, process = failing
    run_id = await platform.start_run("failing", {"delay": 0.05}, workflow="pause")
    lost: set[int] = set()

    async def failed_for_good() -> bool:
        # Whenever a try has failed, the run is lost; the next life goes on with the next try.
        execution = process.worker.executions.get(run_id)
        tries = await pool.fetchval("SELECT count(*) FROM journal WHERE run_id = $1 AND kind = 'retry'", run_id)
        if execution is not None and tries and tries not in lost:
            lost.add(tries)
            await lose(process, execution)
        return (await platform.run(run_id))["status"] == "waiting"

    await eventually(failed_for_good)
    assert lost
    run = await platform.run(run_id)
    assert [(s["status"], s["attempt"]) for s in run["steps"]] == [("retrying", 1), ("retrying", 2), ("failed", 3)]
    assert process.agent.tries["always"] == 3
    await platform.request("run.signal", {"run_id": run_id, "name": "again", "payload": None})
    run = await until(platform, run_id, "completed")
    assert run["output"] == {"attempts": 3, "cause": "try 3"}, "the failure is the same on replay"
    assert process.agent.tries["always"] == 3


class Later(BaseAgent):
    name = "later"

    @workflow
    async def run(self, ctx: Context, task: Any) -> int:
        return await ctx.step("try", self.attempt, retry=Retry(max_attempts=2, delay=60.0, jitter=False))

    async def attempt(self, step: StepContext) -> int:
        if step.attempt == 1:
            raise OSError("not yet")
        return step.attempt


async def test_the_next_try_begins_when_its_pause_is_over_and_no_sooner_also_after_a_restart(harness):
    async with harness(Later) as h:
        run = await h.start({})
        await run.waiting()
        await h.clock.advance(30)
        await h.restart()
        await run.waiting()
        assert run.executions("try") == 1
        await h.clock.advance(31)
        assert await run.result() == 2
