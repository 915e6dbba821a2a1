"""The part of an agent's process that executes runs: claims them, holds them, writes their journal, lets them go."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.bus.pull import PullConsumer
from perdure.engine import control, runs
from perdure.engine.branch import where
from perdure.engine.claims import Claims
from perdure.engine.clock import TIMER_SOON, Clock, SystemClock
from perdure.engine.codec import encode
from perdure.engine.counts import Counts
from perdure.engine.definition import WorkflowDefinition
from perdure.engine.entries import Entry
from perdure.engine.events import Events
from perdure.engine.execution import Execution
from perdure.engine.failure import describe
from perdure.engine.journal import Journal
from perdure.engine.liveness import Liveness
from perdure.engine.mailbox import Mailbox
from perdure.engine.offer import Offer
from perdure.engine.points import reach
from perdure.engine.rows import ClaimedRun, JournalRow, Move
from perdure.engine.slots import Slots
from perdure.engine.stored import unreadable
from perdure.observe.logging import tell_where
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Kept, Pool, Warm
from perdure.store.queries import load_queries
from perdure.store.vault import Unreadable, vault_of

if TYPE_CHECKING:
    from perdure.config.snapshot import AgentConfig
    from perdure.engine.hot_state import HotState
    from perdure.engine.steps import StepCall
    from perdure.engine.traces import RunTraces

log = structlog.get_logger(__name__)

_ENDS = load_queries("ends.sql")
LOST_IN_FLIGHT = 5.0  # seconds before a broken connection was noticed
PATIENCE = 2.0  # seconds that a run which is to be alone waits for the steps of others


class ConfigSource(Protocol):
    """Where the worker finds configuration."""

    def newest(self) -> AgentConfig:
        """The snapshot that is live in this process."""

    def rebuild(self, values: Mapping[str, str], revision: int) -> AgentConfig:
        """A snapshot of an earlier time, from its rows."""


class Worker:
    """Executes the runs of one agent in this process. See `perdure.engine.host.Host` for what executions ask."""

    def __init__(
        self,
        *,
        settings: Settings,
        agent_name: str,
        workflows: Mapping[str, WorkflowDefinition],
        nats: Client,
        pool: Pool,
        config: ConfigSource,
        hot_state: HotState | None = None,
        clock: Clock | None = None,
        linger: float = 0.2,
        traces: RunTraces | None = None,
    ) -> None:
        self.settings = settings
        self.agent_name = agent_name
        self.offer = Offer(agent_name, workflows)
        self.nats = nats
        self.pool = pool
        self.queries: Mapping[str, str] = load_queries("engine.sql")
        self.clock: Clock = clock or SystemClock()
        self.always_replay = settings.always_replay
        self.linger = 0.0 if self.always_replay else linger
        self.cancel_grace = 1.5
        self.fences = 0
        self.steps_running = 0
        self.counts = Counts()
        # A transaction holds a connection while the author's code runs; the engine must not wait for one.
        at_a_time = max(1, settings.pool_size - 3)
        self.transactions = asyncio.Semaphore(at_a_time)
        self.connections = Warm(pool, at_a_time)
        self.loop = asyncio.get_running_loop()
        self.threads: Executor = ThreadPoolExecutor(max_workers=32, thread_name_prefix=f"{agent_name}-step")
        self.executions: dict[str, Execution] = {}
        self.events = Events(nats, self.executions, vault_of(pool))
        self.journal = Journal(Kept(pool), self._after_commit)
        self._config = config
        self._hot_state = hot_state
        self._traces = traces
        tell_where(where)
        self._liveness = Liveness(settings, agent_name, self._lost, self.offer)
        self._claims = Claims(self)
        self._reserved = Slots(self, self._claims, lambda: self._consumer.asked)
        self._mailbox = Mailbox(self)
        self.looked = self._mailbox.looked
        self._consumer = PullConsumer(
            nats,
            stream=subjects.STREAM_WORK,
            subject=subjects.work(agent_name),
            durable=agent_name,
            room=self._room,
            take=self._take,
            expires=settings.lease_seconds / 2,
            outgoing=self.events.outgoing,
        )
        self._nudges: list[Subscription] = []
        self._draining = False
        self.alone: str | None = None  # the run for which this process keeps itself free of others, or "" before it
        self._tasks: set[asyncio.Task[Any]] = set()
        self._background: set[asyncio.Task[Any]] = set()

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def process_id(self) -> str:
        """The name under which this process holds runs."""
        return self._liveness.process_id

    async def start(self) -> None:
        """Register the process and begin to take runs."""
        await self._liveness.start()
        await self.keep_snapshot(self._config.newest())
        for subject in (subjects.process_nudge, subjects.process_offer):
            self._nudges.append(await self.nats.subscribe(subject(f"{self._liveness.token}.*"), cb=self._nudged))
        claimed, wanted = subjects.process_claimed(f"{self._liveness.token}.*"), subjects.slots_wanted(self.agent_name)
        self._nudges.append(await self.nats.subscribe(claimed, cb=self._reserved.filled, pending_bytes_limit=-1))
        self._nudges.append(await self.nats.subscribe(wanted, cb=self._reserved.wanted))
        loops: Sequence[Callable[[], Any]] = (self.journal.run, self._claims.run, self._mailbox.run, self._consumer.run)
        for loop in loops:
            self._tasks.add(asyncio.create_task(self._guard(loop), name=f"worker {loop.__qualname__}"))

    async def _guard(self, loop: Callable[[], Any]) -> None:
        """An engine loop that fails is a fault of ours: log it and begin it again, with its queues as they are."""
        while True:
            try:
                await loop()
            except Exception:
                log.exception(
                    "engine loop failed; it begins again", action="engine.loop_failed", loop=loop.__qualname__
                )
                await asyncio.sleep(0.2)
            else:
                return

    async def drain(self) -> None:
        """Take nothing new, let steps in flight end for a while, give the rest back: no attempt is counted for it."""
        self._draining = True  # from here on no step begins
        self._reserved.withdraw()
        await self._consumer.stop()
        await self._claims.stop()
        self._consumer.flush()  # what the last claims acknowledged
        deadline = self.loop.time() + self.settings.drain_timeout * 0.6
        while (self.steps_running or not self.journal.idle) and self.loop.time() < deadline:
            await asyncio.sleep(0.02)
        held = list(self.executions.values())
        if held:
            await self._release(held)
        self.events.outgoing.flush()
        for nudges in self._nudges:
            if self.nats.is_connected:
                await nudges.unsubscribe()
        for task in [*self._tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        await self.connections.release()
        await self._liveness.stop()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def freeze(self) -> None:
        """From this moment on nothing is written, claimed or executed: what a kill does at once."""
        self._draining = self._reserved.deaf = True
        self.events.outgoing.hold()
        for execution in list(self.executions.values()):
            execution.close()
        for task in [*self._tasks, *self._background]:
            task.cancel()

    async def abort(self) -> None:
        """Stop as if the process were killed: nothing is given back or said. For tests of authors."""
        self.freeze()
        tasks = [*self._tasks, *self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.connections.release()
        await self._liveness.stop(leave=False)
        self.threads.shutdown(wait=False, cancel_futures=True)

    async def part(self) -> bool:
        """Begin no step until `rejoin`, and give the runs here back, uncounted, when no step is under way.

        Steps that last are waited for no longer than `PATIENCE`, and not broken off: the runs stay then. False when
        this process drains, or its lease is over.
        """
        self.alone = ""
        self._reserved.withdraw()
        deadline = self.loop.time() + PATIENCE
        while (self.steps_running or not self.journal.idle) and self.takes and self.loop.time() < deadline:
            await asyncio.sleep(0.02)
        if self.executions and self.takes and not self.steps_running and self.journal.idle:
            await self._release(list(self.executions.values()))
        return self.takes

    def rejoin(self) -> None:
        """Take runs again."""
        self.alone = None
        self._consumer.more()

    async def _release(self, held: list[Execution]) -> None:
        reach("release.before")
        for execution in held:
            execution.close()
        try:
            given = await self.give_back([(execution.run_id, execution.epoch) for execution in held])
        except CONNECTION_ERRORS as error:
            log.warning("runs not given back; their lease will end", action="drain.failed", error=type(error).__name__)
            return
        log.info("runs given back", action="drain.released", runs=given)

    async def give_back(self, held: Sequence[tuple[str, int]]) -> int:
        """Let others have runs that this process holds under these epochs; how many it did hold. No attempt counts."""
        run_ids, epochs = [run_id for run_id, _ in held], [epoch for _, epoch in held]
        records = await self.pool.fetch(self.queries["release"], run_ids, epochs)
        reach("release.after")
        for record in records:
            self.wake(record["run_id"], record["agent_name"])
        return len(records)

    async def on_reconnect(self) -> None:
        """NATS is back: streams and consumer may be gone, and events of ends may have got lost on their way."""
        self._consumer.reset()
        self._claims.audit()
        since = (self.events.outgoing.away_since or datetime.now(UTC)) - timedelta(seconds=LOST_IN_FLIGHT)
        self.events.outgoing.away_since = None
        self._soon(self._patiently(functools.partial(self.pool.execute, _ENDS["doubt_ends"], self.process_id, since)))

    def _lost(self) -> None:
        """The lease is over, or the process's row was given up: every run here may be another's by now."""
        held = list(self.executions.values())
        if held:
            log.warning("lease is over; runs dropped", action="lease.lost", runs=len(held))
        for execution in held:
            execution.close()

    # -- runs come in -------------------------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Whether this process may claim runs at all: its lease holds, and it does not drain."""
        return self._liveness.leased and not self._draining

    @property
    def leased(self) -> bool:
        """Whether the process may start steps."""
        return self._liveness.leased

    @property
    def claims_waiting(self) -> int:
        """Wake-ups whose claim is not decided."""
        return self._claims.waiting

    @property
    def slots(self) -> int:
        """How many runs this process could take now, those that wake-ups wait for not counted."""
        if not self.takes or self.alone is not None:
            return 0
        return min(self.settings.run_slots - len(self.executions) - self._reserved.open, 256)

    @property
    def free(self) -> int:
        """Slots in which no run is, and for which no wake-up is there."""
        return self.settings.run_slots - len(self.executions) - self._claims.waiting

    def _room(self) -> int:
        return min(self.slots, self.free - self._reserved.kept)

    def _take(self, message: Msg) -> None:
        run_id = message.data.decode("ascii", "replace")
        if not subjects.RUN_ID.fullmatch(run_id):
            log.warning("not a run id; dropped", action="work.garbage", subject=message.subject)
            self.ack(message)
            return
        self._claims.add(run_id, message)

    def ack(self, message: Msg) -> None:
        """The claim of a message's run is decided."""
        self._consumer.ack(message)

    def pass_on(self, message: Msg) -> None:
        """A message's run is for other replicas: they run its version, this process does not."""
        self._consumer.pass_on(message)

    def begin(
        self, run: ClaimedRun, history: list[JournalRow], config: AgentConfig, snapshots: Mapping[str, AgentConfig]
    ) -> None:
        """Execute a claimed run."""
        definition = self.offer.find(run.workflow, run.version)
        execution = Execution(self, run, definition, history, config, snapshots, self.process_id)
        self.executions[run.run_id] = execution
        self.counts.claimed += 1
        if self._traces is not None:
            execution.trace = self._traces.claimed(run, history)
        if run.base_seq == 0 and run.seq_floor == 0 and all(row.kind == "fork" for row in history):
            self.counts.started += run.epoch == 1
            self.events.started(execution)
        if self._hot_state is not None:
            self._hot_state.note(run.run_id, run.agent_name, "running", execution.last_seq)
        execution.start()

    def replay(self, execution: Execution) -> None:
        """Begin the run anew from its journal, under the epoch it has."""
        self._soon(self._patiently(functools.partial(self._claims.again, execution)))

    def stop_unreadable(self, run: ClaimedRun, config: AgentConfig, error: Unreadable) -> None:
        """Stop a claimed run whose task or journal cannot be read: it waits for a person as `blocked`."""
        execution = Execution(self, run, self.offer.find(run.workflow, run.version), [], config, {}, self.process_id)
        self.executions[run.run_id] = execution
        execution.block(unreadable(error))

    def closed(self, execution: Execution) -> None:
        """The execution has left memory."""
        if self.executions.get(execution.run_id) is execution:
            del self.executions[execution.run_id]
        self.events.forget(execution.run_id)
        self._consumer.more()

    # -- what executions ask ------------------------------------------------------------------------------------------

    def may_start(self, execution: Execution) -> bool:
        """Whether a step of `execution` may begin: the lease under which it was claimed holds, and nothing drains."""
        apart = self.alone is not None and self.alone != execution.run_id
        return self._liveness.leased and execution.process_id == self.process_id and not self._draining and not apart

    async def wait_for_lease(self, execution: Execution) -> None:
        """Come back when a step of `execution` may begin; if it never may, the execution is closed meanwhile."""
        while not self.may_start(execution):
            await asyncio.sleep(0.05)

    def newest_config(self) -> AgentConfig:
        """The configuration that is live in this process."""
        return self._config.newest()

    def rebuild(self, values: Mapping[str, str], revision: int) -> AgentConfig:
        """A snapshot of an earlier time, from its rows."""
        return self._config.rebuild(values, revision)

    async def keep_snapshot(self, config: AgentConfig) -> None:
        """Keep a snapshot for the runs that will stand on it; before it is used."""
        text = encode(dict(config.values), what="configuration")
        await self.pool.execute(self.queries["keep_snapshot"], self.agent_name, config.hash, config.revision, text)
        self._claims.snapshots[config.hash] = config

    def want_signals(self, execution: Execution) -> None:
        """Read the mailbox of a run, soon."""
        self._mailbox.want_signals(execution)

    def want_children(self, execution: Execution) -> None:
        """Read how the children of a run are, soon."""
        self._mailbox.want_children(execution)

    def cancel_child(self, parent: str, child: str) -> None:
        """Ask a child to end, soon: its parent waits no longer."""
        self._soon(self._patiently(functools.partial(control.cancel_child, self.pool, self.nats, parent, child)))

    def step_failed(self, call: StepCall, error: BaseException, attempt: int, pause: float | None) -> None:
        """A try of a step failed."""
        if pause is None:
            self.counts.steps_failed += 1
        else:
            self.counts.steps_retried += 1
        log.info(
            "step failed",
            action="step.failed" if pause is None else "step.retrying",
            run_id=call.execution.run_id,
            step=call.name,
            attempt=attempt,
            retry_in=pause,
            error_type=type(error).__name__,
            exc_info=error if pause is None else None,
        )

    def engine_failed(self, execution: Execution, error: BaseException) -> None:
        """A fault of the engine itself: the run ends `needs_review`, with what is known; nothing is guessed."""
        if execution.closed or execution.leaving:
            return
        execution.leaving = True
        text = encode(describe(error), what="error")
        self.journal.add(Entry(execution, move=Move("needs_review", error=text)))
        log.error("engine fault", action="engine.fault", run_id=execution.run_id, exc_info=error)

    # -- after a commit -----------------------------------------------------------------------------------------------

    def _after_commit(self, entries: Sequence[Entry]) -> None:
        """Tell what is committed: events, wake-ups of children, of parents and of the next turns."""
        reach("events.before")
        ended: list[Execution] = []
        awaited: list[str] = []
        for entry in entries:
            execution = cast("Execution", entry.writer)
            if entry.row is not None:
                self.events.committed(execution, entry.row)
                if entry.start is not None:
                    reach("children.started", execution.run_id, entry.start.agent_name)
                    self.wake(entry.start.run_id, entry.start.agent_name)
            if entry.move is not None:
                self.events.moved(execution, entry.move)
                self._observe(execution, entry.move)
                if execution.run.queue is not None:
                    self._place_is_free(execution.run.queue)
                if entry.woken or entry.move.status == "pending":
                    self.wake(execution.run_id, self.agent_name)
                elif entry.move.wake_at is not None:
                    self._timer_was_set(entry.move.wake_at)
                elif entry.move.end_seq is not None:
                    ended.append(execution)
                    if entry.joined or execution.run.parent_run_id is not None:
                        awaited.append(execution.run_id)
                if self._hot_state is not None:
                    self._hot_state.note(execution.run_id, self.agent_name, entry.move.status, execution.last_seq)
        sessions = [e.run.session_id for e in ended if e.run.session_id is not None]
        if awaited:
            self._soon(runs.tell_parents(self.pool, self.nats, awaited))
        if sessions:
            self._soon(self._next_turns(sessions))

    async def _next_turns(self, sessions: Sequence[str]) -> None:
        for _ in range(2):  # the word of the end leaves first, by the client's own task
            await asyncio.sleep(0)
        async with self.connections.acquire() as connection:
            await runs.next_turns(connection, self.nats, [(self.agent_name, name) for name in sessions])

    def _observe(self, execution: Execution, move: Move) -> None:
        self.counts.moved(execution.run, move, self.clock.now().timestamp())
        if execution.trace is not None and move.end_seq is not None:
            execution.trace.ended(move.status)

    async def _patiently(self, query: Callable[[], Any]) -> Any:
        delay = 0.05
        while True:
            try:
                return await query()
            except CONNECTION_ERRORS:
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)

    def wake(self, run_id: str, agent: str) -> None:
        """Send a wake-up; a lost one is repeated by the sweeper."""
        self.events.publish(subjects.work(agent), run_id.encode())

    def _timer_was_set(self, due_at: datetime) -> None:
        if (due_at - self.clock.now()).total_seconds() < TIMER_SOON:
            self.events.publish(subjects.TIMER_SOON, b"")

    def _place_is_free(self, queue: str) -> None:
        """A run of `queue` runs no longer here: the next may, here or, as the scheduler finds out, elsewhere."""
        self._claims.look(queue)
        self.events.publish(subjects.QUEUE_LOOK, queue.encode())

    def _soon(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = log.warning if isinstance(error, CONNECTION_ERRORS) else log.error
            level("background work failed; the scheduler repeats it", action="engine.background", exc_info=error)

    # -- nudges -------------------------------------------------------------------------------------------------------

    async def _nudged(self, message: Msg) -> None:
        """Somebody changed something about a run that this process holds, or has a place for: look."""
        run_id = message.data.decode("ascii", "replace")
        execution = self.executions.get(run_id)
        if execution is not None:
            self._mailbox.look(execution)
        elif message.subject.endswith(".offer") and subjects.RUN_ID.fullmatch(run_id):
            self._claims.add(run_id, None)
