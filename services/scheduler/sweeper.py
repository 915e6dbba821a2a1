"""Timers that are due, and work whose wake-up was lost: one poller for all waiting runs, one for all pending ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from perdure import subjects
from perdure.bus.outgoing import Outgoing
from perdure.bus.streams import standing
from perdure.engine import control, queues, runs
from perdure.engine.clock import TIMER_SOON, Clock
from perdure.engine.points import reach
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from services.scheduler.untold import UntoldEnds

_SQL = load_queries("engine.sql")
log = structlog.get_logger(__name__)

BATCH = 1000
TIMER_PAUSE = 0.01  # seconds from a look that woke runs to the next one, at least: what is due by then goes together
READS = 100.0  # messages a second that an agent reads at least, for all the scheduler knows
ANSWERS = 1.0  # seconds that JetStream may take to say what stands in it
TIMER_STEP = 0.001  # seconds: event loops know no shorter ones, and would come back a little too early


class Sweeper:
    """Wakes runs: those that are due, and those that should have been woken and may not have been."""

    def __init__(self, pool: Pool, nats: Client, settings: Settings, clock: Clock) -> None:
        self._pool = pool
        self._nats = nats
        self._settings = settings
        self._clock = clock
        self._hurry = asyncio.Event()
        self._sooner = asyncio.Event()
        self._ends = UntoldEnds(pool, nats)
        self._outgoing = Outgoing(nats)
        self.redispatched = self.fired = 0

    def readings(self) -> Iterator[Reading]:
        """What is counted of wake-ups."""
        yield "perdure_runs_redispatched_total", (), self.redispatched
        yield "perdure_timers_fired_total", (), self.fired

    def hurry(self) -> None:
        """Sweep now: wake-ups were probably lost."""
        self._hurry.set()

    async def open(self) -> None:
        """Hear of timers that are due before the next look."""
        await self._nats.subscribe(subjects.TIMER_SOON, cb=self._heard)

    async def _heard(self, _message: Msg) -> None:
        self._sooner.set()

    async def run_timers(self) -> None:
        """Wake the runs whose `wake_at` is past, until cancelled.

        It sleeps until the first timer is due. One that was set meanwhile is seen at the next look, `TIMER_SOON`
        seconds later; processes tell of those that are due before that.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._sooner.clear()
            while (woken := await self.wake_due()) == BATCH:
                pass
            again_at = loop.time() + (TIMER_PAUSE if woken else 0.0)
            first = await self._pool.fetchval(_SQL["next_timer"])
            left = TIMER_SOON if first is None else (first - self._clock.now()).total_seconds()
            pause = left + TIMER_STEP if left > 0 else TIMER_PAUSE  # due, and in the hands of another
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(pause, again_at - loop.time()), TIMER_SOON)):
                    await self._sooner.wait()

    async def wake_due(self) -> int:
        """Wake up to 1,000 due runs; how many there were."""
        reach("timers.before")
        records = await self._pool.fetch(_SQL["due_timers"], self._clock.now(), BATCH)
        if records:
            reach("timers.after")
        if unplaced := [record["run_id"] for record in records if record["unplaced"]]:
            await queues.place(self._pool, unplaced, own=False)
        self.fired += len(records)
        self._wake(records)
        return len(records)

    def _wake(self, records: Sequence[asyncpg.Record]) -> None:
        """Send the wake-ups of these runs, in one write; a lost one is repeated."""
        for record in records:
            self._outgoing.put(subjects.work(record["agent_name"]), record["run_id"].encode())
        self._outgoing.flush()

    async def run_outbox(self) -> None:
        """Dispatch pending runs again whose last wake-up is old, and ended children nobody was told of."""
        while True:
            hurried = self._hurry.is_set()
            self._hurry.clear()
            age = 0.0 if hurried else self._settings.redispatch_after
            while await self.sweep(age) == BATCH:
                age = self._settings.redispatch_after
            await self.tell_untold()
            await self._ends.tell()
            await self.cancel_abandoned()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.sweep_interval):
                    await self._hurry.wait()

    async def sweep(self, age: float) -> int:
        """Wake up to 1,000 pending runs last dispatched `age` seconds ago or earlier; how many there were.

        While an agent has much to read, the wake-ups of its runs are likely to stand there, too: they are not repeated
        before it can have come to them, unless `age` is 0.
        """
        if not self._nats.is_connected:
            return 0
        lines = await self._lines() if age > 0 else {}
        reach("outbox.before")
        records = await self._pool.fetch(_SQL["stale_pending"], age, BATCH, list(lines), list(lines.values()))
        if records:
            reach("outbox.after")
        self._wake(records)
        self.redispatched += len(records)
        if records:
            log.info("dispatched again", action="sweep.redispatched", runs=len(records))
        return len(records)

    async def _lines(self) -> dict[str, float]:
        """The seconds that agents may need to read the wake-ups that stand in the stream for them."""
        try:
            counts = await standing(self._nats.jetstream(timeout=ANSWERS), subjects.STREAM_WORK)
        except NatsError as error:
            log.info("the stream tells nothing", action="sweep.no_lines", error=type(error).__name__)
            return {}  # a wake-up too many does no harm
        return {subject.removeprefix(subjects.work("")): count / READS for subject, count in counts.items()}

    async def tell_untold(self) -> None:
        """Wake the parents of children that ended while nobody could tell."""
        before = datetime.now(UTC) - timedelta(seconds=self._settings.redispatch_after)
        children = await self._pool.fetch(_SQL["untold_children"], before, BATCH)
        if children:
            await runs.tell_parents(self._pool, self._nats, [record["run_id"] for record in children])

    async def cancel_abandoned(self) -> None:
        """Cancel the children of cancelled parents that whoever cancelled did not live to reach."""
        before = datetime.now(UTC) - timedelta(seconds=self._settings.redispatch_after)
        for record in await self._pool.fetch(_SQL["abandoned_children"], before, BATCH):
            reason = f"its parent {record['parent_run_id']} was cancelled"
            await control.cancel(self._pool, self._nats, record["run_id"], reason)
