"""Replays a recorded run against an agent's code, in memory: no server, no step function, no effect."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perdure.agent.base import BaseAgent
from perdure.config.snapshot import AgentConfig
from perdure.engine.clock import Clock
from perdure.engine.codec import decode, encode
from perdure.engine.counts import Counts
from perdure.engine.entries import Entry
from perdure.engine.execution import Execution
from perdure.engine.failure import describe
from perdure.engine.history import recorded_row, recorded_run
from perdure.engine.offer import Offer
from perdure.engine.rows import Move
from perdure.settings import Settings
from perdure.testing.clock import FakeClock

PATIENCE = 10.0  # seconds that a workflow may take between two awaits


class Diverged(AssertionError):
    """The code asks for something else than the history has: a run like this one would be `blocked` by it.

    `difference` is what `run.get` would show as the run's error.
    """

    def __init__(self, run_id: str, difference: Mapping[str, Any]) -> None:
        super().__init__(f"run {run_id}: {difference['message']}")
        self.run_id = run_id
        self.difference = dict(difference)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A history that the code agrees with: how many rows it has, and how it goes on after the last.

    `end` is the state in which the run ended or waits, or `goes on` when the next thing would be done anew.
    """

    run_id: str
    rows: int
    end: str


async def replay(agent: type[BaseAgent] | BaseAgent, history: Mapping[str, Any]) -> Replayed:
    """Replay one history. Raises `Diverged`, and `ValueError` for a history of another agent."""
    run = recorded_run(history["run"])
    if run.agent_name != agent.name:
        raise ValueError(f"run {run.run_id} is one of agent {run.agent_name!r}, not of {agent.name!r}")
    rows = [recorded_row(each) for each in history["rows"]]
    snapshots = {
        digest: AgentConfig.from_row(
            each["values"], agent_name=agent.name, revision=each["revision"], settings_model=agent.Settings
        )
        for digest, each in history["snapshots"].items()
    }
    config = snapshots.get(run.config_hash or "") or AgentConfig.from_row(
        {}, agent_name=agent.name, settings_model=agent.Settings
    )
    made = agent if isinstance(agent, BaseAgent) else agent(config)
    offer = Offer(made.name, made.workflows())
    try:
        definition = offer.find(run.workflow, run.version)
    except KeyError:
        raise Diverged(run.run_id, _not_offered(offer, run.workflow, run.version)) from None
    host = _Host(config, FakeClock(max([run.started_at, *(row.finished_at for row in rows)])))
    execution = Execution(host, run, definition, rows, config, snapshots, "replay")
    try:
        execution.start()
        end = await _end_of(execution, host)
    finally:
        execution.close()
    if end.status == "blocked":
        raise Diverged(run.run_id, decode(end.error))
    if end.status in ("failed", "needs_review") and history["run"]["status"] == "completed":
        error = decode(end.error)
        said = f"the recorded run completed, and this code ends {end.status}: {error['type']}: {error['message']}"
        raise Diverged(run.run_id, {"type": "ReplayMismatch", "message": said, "journal": None, "code": error})
    return Replayed(run.run_id, len(rows), end.status)


def _not_offered(offer: Offer, workflow: str, version: str | None) -> dict[str, Any]:
    has = ", ".join(f"{n!r} {v!r}" if v else repr(n) for n, v in zip(offer.names, offer.versions, strict=True))
    wanted = f"workflow {workflow!r}" + (f" in version {version!r}" if version else "")
    said = f"the code has no {wanted}, which this run has; it has {has}. Keep it while such runs are in flight."
    return {
        "type": "ReplayMismatch",
        "message": said,
        "journal": {"workflow": workflow, "version": version},
        "code": has,
    }


async def _end_of(execution: Execution, host: _Host) -> Move:
    """The first word of the run that a journal would hear, once its code rests."""
    deadline = host.loop.time() + PATIENCE
    pause = 0.0
    while True:
        if host.move is not None:
            return host.move
        if host.went_on and execution.active == 0:
            return Move("goes on")
        if host.loop.time() > deadline:
            said = (
                f"after {PATIENCE:.0f} s the code still waits for something that is not of ctx. A workflow's code "
                "waits for ctx alone; everything else belongs into a step."
            )
            raise Diverged(execution.run_id, {"type": "ReplayMismatch", "message": said, "journal": None, "code": None})
        await asyncio.sleep(pause)
        pause = min(pause + 0.00001, 0.01)


class _Host:
    """What the execution asks for; whatever would be done anew is noted, and not done."""

    linger = 0.0
    cancel_grace = PATIENCE
    always_replay = False
    fences = 0
    steps_running = 0
    pool: Any = None
    threads: Any = None
    transactions: Any = None
    connections: Any = None

    def __init__(self, config: AgentConfig, clock: FakeClock) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock: Clock = clock
        self.settings = Settings.model_construct()
        self.queries: Mapping[str, str] = {}
        self.counts = Counts()
        self.events: Any = _Silent()
        self.journal: Any = self
        self.went_on = False
        self.move: Move | None = None
        self._config = config

    def add(self, entry: Entry) -> None:
        """The journal: a row would be new, a move is the end."""
        if entry.move is not None and self.move is None:
            self.move = entry.move
        self.went_on = True

    def may_start(self, execution: Execution) -> bool:  # noqa: ARG002 -- no step of any run
        """No step is executed."""
        return False

    async def wait_for_lease(self, execution: Execution) -> None:  # noqa: ARG002 -- the same
        """A step would begin here."""
        self.went_on = True
        await asyncio.Event().wait()

    def newest_config(self) -> AgentConfig:
        """No newer configuration comes."""
        return self._config

    def want_signals(self, execution: Execution) -> None:  # noqa: ARG002 -- nothing is sent
        """A signal would be waited for."""
        self.went_on = True

    def want_children(self, execution: Execution) -> None:  # noqa: ARG002 -- nothing is started
        """A child would be waited for."""
        self.went_on = True

    async def looked(self, execution: Execution) -> None:
        """There is nothing to read."""

    def cancel_child(self, parent: str, child: str) -> None:
        """Nothing is asked to end."""

    def step_failed(self, call: Any, error: BaseException, attempt: int, pause: float | None) -> None:
        """No step is executed."""

    def engine_failed(self, execution: Execution, error: BaseException) -> None:  # noqa: ARG002 -- there is one
        """The workflow waits for nothing that could wake it, or the engine has a fault."""
        if self.move is None:
            self.move = Move("blocked", error=encode(describe(error), what="error"))

    def replay(self, execution: Execution) -> None:
        """Not in this mode."""

    def closed(self, execution: Execution) -> None:
        """It is over."""


class _Silent:
    """Events, told to nobody."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args: None
