"""One agent under test: real servers, a clock that stands still, crashes where the test wants them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self
from uuid import uuid4

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.agent.base import BaseAgent
from perdure.agent.process import AgentProcess
from perdure.bus.bucket import Bucket
from perdure.bus.streams import ensure_streams
from perdure.engine import control, history, points, runs
from perdure.engine.definition import WorkflowDefinition, define_workflow
from perdure.errors import RunFailed
from perdure.schedules.declared import take_up
from perdure.schedules.ticking import next_moment, tick
from perdure.settings import Settings
from perdure.store.postgres import Pool, create_pool
from perdure.store.queries import load_queries
from perdure.store.vault import vault_of
from perdure.testing.clock import FakeClock
from perdure.testing.crash import on_crash

_SQL = load_queries("engine.sql")
PATIENCE = 10.0  # seconds that anything may take before the test is told what it waits for


async def _until(check: Callable[[], Awaitable[Any]], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := await check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what}")
        await asyncio.sleep(0.005)
    return found


class HarnessRun:
    """A run under test."""

    def __init__(self, harness: Harness, run_id: str) -> None:
        self._harness = harness
        self.run_id = run_id

    async def result(self) -> Any:
        """The run's output. Raises `RunFailed` when it ended otherwise, and an `AssertionError` when it does not end.

        The clock stands: advance it first when the run sleeps.
        """
        found: dict[str, Any] = {}

        async def ended() -> bool:
            found.update(await self.get())
            return found["status"] in ("completed", "failed", "cancelled", "dead", "blocked", "needs_review")

        try:
            await _until(ended, "the end of the run")
        except AssertionError as error:
            at = [f"{step['kind']} {step['name']!r}" for step in found["steps"] if step["status"] == "waiting"]
            raise AssertionError(
                f"run {self.run_id} is {found['status']} (open: {', '.join(at) or 'nothing'}): "
                "advance the clock, or send the signal it waits for"
            ) from error
        if found["status"] == "completed":
            return found.get("output")
        raise RunFailed(self.run_id, found["status"], found.get("error"))

    async def get(self) -> dict[str, Any]:
        """The run as `run.get` shows it: status, output, error, steps."""
        return await runs.get(self._harness.pool, self.run_id)

    async def history(self) -> dict[str, Any]:
        """What a replay of the run reads, for `Recorder.keep`."""
        return await history.whole(self._harness.pool, self.run_id)

    async def waiting(self) -> None:
        """Come back when the run waits (for a time, a signal or a child)."""

        async def waits() -> bool:
            return bool((await self.get())["status"] == "waiting")

        await _until(waits, f"run {self.run_id} waits")

    async def signal(self, name: str, payload: Any = None, *, signal_id: str | None = None) -> None:
        """Send a signal; one that is sent before its wait is kept."""
        pool, nc = self._harness.pool, self._harness.nc
        record = await runs.send_signal(pool, self.run_id, name, payload, signal_id)
        if record["woken"]:
            runs.wake(nc, self.run_id, record["agent_name"])
        elif record["status"] == "running":
            runs.nudge(nc, record["process_id"], self.run_id)

    async def cancel(self, reason: str = "cancelled by the test") -> None:
        """Ask the run to end."""
        await control.cancel(self._harness.pool, self._harness.nc, self.run_id, reason)

    async def crashed(self) -> None:
        """Come back when the crash that `crash_at` asked for has struck and the agent is gone."""
        await _until(self._harness.is_down, "the crash (is its point reached?)")

    def executions(self, step: str) -> int:
        """How many times the function of `step` was really run, over all crashes and replays."""
        return self._harness.executed[self.run_id, step]


class Harness:
    """Runs one agent for a test: `async with harness(MyAgent, mocks={"mailer": {"id": 1}}) as h`.

    `mocks` stand for other agents: the output of each by name, or a function of the task (plain or async) whose
    exception fails the child. `config` is the agent's configuration as text by key. Under `always_replay` a run leaves
    memory at every await and is replayed from its journal, so that code which does not replay ends `blocked` at once.
    """

    def __init__(
        self,
        agent: type[BaseAgent] | BaseAgent,
        settings: Settings,
        *,
        mocks: Mapping[str, Any] | None = None,
        config: Mapping[str, str] | None = None,
        always_replay: bool = False,
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._always_replay = always_replay
        self._mocks = {subjects.agent_name(name): answer for name, answer in (mocks or {}).items()}
        self._rows = dict(config or {})
        self._revision = 1
        self._processes: list[AgentProcess] = []
        self._process: AgentProcess | None = None
        self._aborting: asyncio.Task[None] | None = None
        self._removers: list[Callable[[], None]] = []
        self.clock = FakeClock()
        self.executed: Counter[tuple[str, str]] = Counter()
        self.pool: Pool
        self.nc: Client

    async def __aenter__(self) -> Self:
        self.pool = await create_pool(self._settings, "harness", size=4)
        self.nc = await nats.connect(self._settings.nats_url)
        vault_of(self.pool).objects = Bucket(self.nc, self._settings.namespace)
        # Before the first run: a wake-up that no stream holds is lost, and no sweeper repeats it here.
        await ensure_streams(self.nc.jetstream())
        await self.nc.subscribe(f"{subjects.CONFIG_GET}.*", cb=self._answer_config)
        self._removers = [on_crash(self._crash), points.install(self._count)]
        self.clock.settle = self._settle
        for name, answer in self._mocks.items():
            process = AgentProcess(_mock_agent(name, answer), self._for_instance(name))
            await process.start()
            self._processes.append(process)
        await self._start_agent()
        return self

    async def __aexit__(self, *_: object) -> None:
        for remove in self._removers:
            remove()
        if self._aborting is not None:
            await self._aborting
        for process in [*self._processes, *([self._process] if self._process else [])]:
            await process.stop()
        await self.nc.close()
        self.pool.terminate()

    @property
    def agent(self) -> BaseAgent:
        """The agent under test. Raises `AssertionError` while it is down."""
        if self._process is None:
            raise AssertionError("the agent is down; `await h.restart()` starts it again")
        return self._process.agent

    async def start(
        self, task: Any, *, workflow: str = "run", run_id: str | None = None, session_id: str | None = None
    ) -> HarnessRun:
        """Start a run of the agent."""
        start = runs.new_start(
            run_id or subjects.new_run_id(), self._agent.name, task, workflow=workflow, session_id=session_id
        )
        await runs.accept(self.pool, [start])
        runs.wake(self.nc, start.run_id, self._agent.name)
        await self.nc.flush()
        return HarnessRun(self, start.run_id)

    async def restart(self, agent: type[BaseAgent] | BaseAgent | None = None) -> None:
        """Start the agent again after a crash, or in place of the one that runs; what it held goes on.

        `agent` is other code under the same name that is started in its stead, as a deployment does.
        """
        if agent is not None:
            if agent.name != self._agent.name:
                raise ValueError(f"the agent under test is {self._agent.name!r}, not {agent.name!r}")
            self._agent = agent
        if self._aborting is None and self._process is not None:
            self._begin_abort()
        if self._aborting is not None:
            await self._aborting
            self._aborting = None
        await self._requeue()
        await self._start_agent()
        await self._wake_pending()

    async def configure(self, **values: str | None) -> None:
        """Change the agent's configuration (`None` takes a key away); comes back when the agent stands on it."""
        for key, value in values.items():
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value
        self._revision += 1
        update = {
            "agent_name": self._agent.name,
            "updated_keys": sorted(values),
            "timestamp": time.time(),
            "revision": self._revision,
        }
        await self.nc.publish(subjects.CONFIG_UPDATE, orjson.dumps(update))

        async def live() -> bool:
            return self._process is None or self._process.newest().revision >= self._revision

        await _until(live, "the agent takes the configuration")

    async def is_down(self) -> bool:
        """Whether the agent has crashed and is gone."""
        if self._aborting is None or not self._aborting.done():
            return False
        self._aborting.result()
        return self._process is None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _for_instance(self, name: str) -> Settings:
        return self._settings.model_copy(update={"instance_id": f"{name}-{uuid4().hex[:8]}", "drain_timeout": 1.0})

    async def _start_agent(self) -> None:
        settings = self._for_instance("agent").model_copy(update={"always_replay": self._always_replay})
        self._process = AgentProcess(self._agent, settings, clock=self.clock, linger=0.0)
        await self._process.start()

    def _count(self, point: str, run_id: str, name: str) -> None:
        if point == "step.before":
            self.executed[run_id, name] += 1

    def _crash(self, run_id: str) -> bool:
        if self._process is None or (run_id and run_id not in self._process.worker.executions):
            return False
        self._begin_abort()
        return True

    def _begin_abort(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.worker.freeze()
            self._aborting = asyncio.get_running_loop().create_task(process.abort())

    async def _requeue(self) -> None:
        """What the scheduler's reaper does with a lost process."""
        for record in await self.pool.fetch(_SQL["executed_by"], self._agent.name):
            await self.pool.fetchval(_SQL["bury_process"], record["process_id"], datetime.now(UTC))
        for record in await self.pool.fetch(_SQL["held_by_lost"]):
            await self.pool.fetch(_SQL["requeue_lost"], record["process_id"], self._settings.run_max_attempts, 10_000)

    async def _wake_pending(self) -> None:
        for record in await self.pool.fetch(_SQL["stale_pending"], -3600.0, 10_000, [], []):
            runs.wake(self.nc, record["run_id"], record["agent_name"])

    async def _settle(self, target: datetime) -> datetime | None:
        """Wake what is due now, wait until every run rests, and say what is due next."""
        names = [self._agent.name, *self._mocks]
        for start in (await tick(self.pool, self.clock.now()))[1]:
            runs.wake(self.nc, start.run_id, start.agent_name)
        await take_up(self.pool, self.clock.now())
        for record in await self.pool.fetch(_SQL["due_timers"], self.clock.now(), 10_000):
            runs.wake(self.nc, record["run_id"], record["agent_name"])

        async def resting() -> bool:
            if self._process is None:
                return True  # a crash struck on the way: nothing moves until the restart
            return not await self.pool.fetch(_SQL["unfinished"], names)

        await _until(resting, "every run rests (a step that never ends keeps time from passing)")
        if self._process is None:
            return None
        due: datetime | None = await self.pool.fetchval(_SQL["due_before"], target)
        moment = await next_moment(self.pool)
        return min((each for each in (due, moment) if each is not None and each <= target), default=None)

    async def _answer_config(self, message: Msg) -> None:
        mine = message.subject.rpartition(".")[2] == self._agent.name
        reply = {"status": "success", "configurations": self._rows if mine else {}, "revision": self._revision}
        await message.respond(orjson.dumps(reply))


def _mock_agent(name: str, answer: Any) -> type[BaseAgent]:
    """An agent that answers every task the same way."""

    async def work(task: Any) -> Any:
        said = answer(task) if callable(answer) else answer
        return await said if asyncio.iscoroutine(said) else said

    async def run(ctx: Any, task: Any) -> Any:  # noqa: ARG001 -- a workflow takes a context
        return await work(task)

    class Mock(BaseAgent):
        def workflows(self) -> Mapping[str, WorkflowDefinition]:
            return {"run": define_workflow(run, name="run")}

    Mock.name = name
    return Mock
