"""The scheduler: accepts runs and answers for them, wakes what is due, puts back what a lost process held.

Nothing in it is state: every loop reads Postgres, so any number of schedulers may run, and any may die.
"""

from __future__ import annotations

from typing import ClassVar

from perdure import subjects
from perdure.bus.service import Service
from perdure.bus.streams import ensure_streams
from perdure.config.level import LevelFollower
from perdure.engine.clock import Clock, SystemClock
from perdure.observe.metrics import Source
from perdure.settings import Settings
from perdure.store.audit import acting_pool
from perdure.store.audit_seals import Sealing
from perdure.store.audit_watch import AuditWatch
from services.scheduler.accept import Acceptor
from services.scheduler.ask import Asks
from services.scheduler.backlog import Backlog
from services.scheduler.callbacks import Callbacks
from services.scheduler.cleaner import Cleaner
from services.scheduler.payloads import Payloads
from services.scheduler.queues import Queues
from services.scheduler.reaper import Reaper
from services.scheduler.requests import RunRequests
from services.scheduler.retention import Retention
from services.scheduler.schedule_requests import ScheduleRequests
from services.scheduler.schedules import Ticker
from services.scheduler.sessions import SessionRequests
from services.scheduler.sweeper import Sweeper
from services.scheduler.tasks import TaskIntake


class Scheduler(Service):
    """Composition root of the scheduler's process."""

    service_name: ClassVar[str] = "scheduler"
    description: ClassVar[str] = "accepts runs, wakes what is due, requeues what was lost"

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None) -> None:
        super().__init__(settings)
        self._clock: Clock = clock or SystemClock()
        self._intake: TaskIntake | None = None
        self._sweeper: Sweeper | None = None
        self._cleaner: Cleaner | None = None
        self._level: LevelFollower | None = None

    def metadata(self) -> dict[str, str]:
        """What discovery shows: the revision of the configuration of all, which sets its log level."""
        return {**super().metadata(), "config_revision": self._level.revision if self._level else ""}

    async def on_start(self) -> None:
        """Streams, endpoints, loops."""
        await ensure_streams(self.nats.jetstream())
        payloads = Payloads(self.pool, self.settings)
        acceptor = Acceptor(self.pool, self.nats, self.settings, payloads, self._clock)
        asks = Asks(self.nats, self.pool, acceptor, payloads)
        requests = RunRequests(self.pool, self.nats, self.settings, payloads)
        self._sweeper = Sweeper(self.pool, self.nats, self.settings, self._clock)
        reaper = Reaper(self.pool, self.nats, self.settings)
        self._intake = TaskIntake(self.nats, acceptor)
        queues = Queues(self.pool, self.nats, self._clock)
        await acceptor.open()
        self.spawn(acceptor.run, name="accept")
        self.spawn(asks.run, name="asks")
        await self._sweeper.open()
        self.spawn(self._sweeper.run_timers, name="timers")
        self.spawn(self._sweeper.run_outbox, name="outbox")
        self.spawn(reaper.run, name="reaper")
        self._cleaner = Cleaner(self.pool, self.bucket, keeps=self.settings.payload_store == "nats")
        await self._cleaner.keep_bucket()
        self.spawn(self._cleaner.run, name="payloads")
        self.spawn(queues.run, name="queues")
        self.spawn(Retention(self.pool, self.settings).run, name="retention")
        callbacks = Callbacks(self.pool, self.nats, self.settings)
        self.spawn(callbacks.run, name="callbacks")
        self.spawn(Ticker(self.pool, self.nats, self._clock).run, name="schedules")
        self.spawn(self._intake.run, name="tasks")
        self._level = LevelFollower(self.nats, self.settings)
        self.spawn(self._level.run, name="log-level")
        watch = AuditWatch(self.pool, self.settings, "acts")
        self._show(acceptor.readings, self._sweeper.readings, reaper.readings, callbacks.readings, watch.readings)
        self.spawn(Sealing(self.pool, self.settings, "acts").run, name="audit")
        self.spawn(watch.run, name="audit-watch")
        self.health.add("audit", watch.check, at_worst="warning")
        await asks.open()
        await queues.open()
        queue = subjects.QUEUE_SCHEDULER
        await self.endpoint("start", f"{subjects.RUN_START}.*", acceptor.start, queue=queue, concurrency=4096)
        await self.endpoint("ask", f"{subjects.RUN_ASK}.*", asks.ask, queue=queue, concurrency=16_384)
        await self.endpoint("payload-put", subjects.PAYLOAD_PUT, payloads.put, queue=queue, concurrency=32)
        await self.endpoint("payload-get", subjects.PAYLOAD_GET, payloads.get, queue=queue, concurrency=32)
        for name, handler in requests.handlers().items():
            await self.endpoint(name, f"run.{name}", handler, queue=queue)
        for name, handler in SessionRequests(self.pool).handlers().items():
            await self.endpoint(f"session-{name}", f"session.{name}", handler, queue=queue)
        await self.endpoint("queues", subjects.QUEUE_LIST, queues.list, queue=queue)
        for name, handler in ScheduleRequests(acting_pool(self.pool), self.nats, self._clock).handlers().items():
            await self.endpoint(f"schedule-{name}", f"{subjects.SCHEDULE}.{name}", handler, queue=queue)

    def _show(self, *sources: Source) -> None:
        """Tell what these parts count, and what waits in Postgres if somebody may ask."""
        for source in sources:
            self.metrics.add(source)
        if self.settings.metrics_port is not None:
            backlog = Backlog(self.pool)
            self.metrics.add(backlog.readings)
            self.spawn(backlog.run, name="backlog")

    async def on_reconnect(self) -> None:
        """NATS was away, and its streams may be gone; what was pending is dispatched again."""
        await ensure_streams(self.nats.jetstream())
        if self._cleaner is not None:
            await self._cleaner.keep_bucket()
        if self._intake is not None:
            self._intake.reset()
        if self._sweeper is not None:
            self._sweeper.hurry()
