"""Makes runs of what triggers hear: validated, deduplicated, acknowledged once committed."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.agent.base import BaseAgent, Resources
from perdure.agent.triggers import OnClock, OnSubject, triggers_of
from perdure.bus.pull import PullConsumer
from perdure.engine import WorkflowDefinition, runs
from perdure.engine.codec import short_hash
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, vault_of

if TYPE_CHECKING:
    from perdure.engine.clock import Clock

SLOTS: Final = 256
MOST_MISSED: Final = 1000

_SQL = load_queries("triggers.sql")
log = structlog.get_logger()


class Unfit(Exception):
    """A message that cannot become a run; the text says why."""


class Triggers:
    """The triggers of one agent's process."""

    def __init__(
        self, agent: BaseAgent, workflows: Mapping[str, WorkflowDefinition], resources: Resources, clock: Clock
    ) -> None:
        self._agent = agent.name
        self._workflows = workflows
        self._resources = resources
        self._clock = clock
        self._found = triggers_of(agent)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._consumers: list[PullConsumer] = []
        self._subscriptions: list[Subscription] = []
        self.buried = 0

    async def start(self) -> None:
        """Listen."""
        for workflow, trigger in self._found:
            if isinstance(trigger, OnClock):
                self._loops.append(asyncio.create_task(self._tick(workflow, trigger), name=f"cron {workflow}"))
            elif trigger.stream is not None:
                self._consume(workflow, trigger, trigger.stream)
            else:
                await self._subscribe(workflow, trigger)

    async def stop(self) -> None:
        """Listen no more, and finish what has come in."""
        for consumer in self._consumers:
            await consumer.stop()
        for subscription in self._subscriptions:
            if self._resources.nats.is_connected:
                await subscription.unsubscribe()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, *self._tasks, return_exceptions=True)
        self._consumers, self._subscriptions, self._loops = [], [], []

    def reset(self) -> None:
        """NATS was away."""
        for consumer in self._consumers:
            consumer.reset()

    # -- messages -----------------------------------------------------------------------------------------------------

    async def _subscribe(self, workflow: str, trigger: OnSubject) -> None:
        async def heard(message: Msg) -> None:
            while len(self._tasks) >= SLOTS:  # the client's own buffer is the queue
                await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)
            self._soon(self._take(workflow, trigger, message, None))

        nats = self._resources.nats
        self._subscriptions.append(await nats.subscribe(trigger.subject, queue=f"{self._agent}.{workflow}", cb=heard))
        await nats.flush()

    def _consume(self, workflow: str, trigger: OnSubject, stream: str) -> None:
        consumer: PullConsumer

        def take(message: Msg) -> None:
            self._soon(self._take(workflow, trigger, message, consumer))

        consumer = PullConsumer(
            self._resources.nats,
            stream=stream,
            subject=trigger.subject,
            durable=subjects.trigger_consumer(self._agent, workflow, trigger.subject),
            room=lambda: SLOTS - len(self._tasks),
            take=take,
        )
        self._consumers.append(consumer)
        self._loops.append(asyncio.create_task(consumer.run(), name=f"trigger {workflow}"))

    def _soon(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        for consumer in self._consumers:
            consumer.more()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a trigger failed", action="trigger.failed", agent=self._agent, exc_info=error)

    async def _take(self, workflow: str, trigger: OnSubject, message: Msg, consumer: PullConsumer | None) -> None:
        try:
            try:
                task = self._read(workflow, trigger, message.data)
            except Unfit as error:
                await self._bury(workflow, message, str(error), consumer)
            else:
                if task is not None:
                    await self._accept(self._run_id(workflow, message, consumer), workflow, orjson.loads(message.data))
        except CONNECTION_ERRORS as error:
            if consumer is None:
                log.exception("a message was lost: Postgres is away", action="trigger.lost", subject=message.subject)
                return
            log.warning("a message waits", action="trigger.retry", error=type(error).__name__)
            await message.nak(delay=1)
            return
        if consumer is not None:
            consumer.ack(message)

    def _read(self, workflow: str, trigger: OnSubject, data: bytes) -> tuple[Any] | None:
        """The task in a 1-tuple, None when the filter leaves it out. Raises `Unfit`."""
        if len(data) > self._resources.settings.max_payload:
            raise Unfit(f"the message has {len(data)} bytes; the limit is {self._resources.settings.max_payload}")
        try:
            task = self._workflows[workflow].task.decode(data.decode(), what="the message")
        except (TypeError, ValueError) as error:
            raise Unfit(str(error)) from error
        try:
            return (task,) if trigger.filter is None or trigger.filter(task) else None
        except Exception as error:
            raise Unfit(f"the filter raised {type(error).__name__}: {error}") from error

    def _run_id(self, workflow: str, message: Msg, consumer: PullConsumer | None) -> str:
        told = (message.headers or {}).get("Nats-Msg-Id")
        if told is None and consumer is not None:
            place = message.metadata
            told = f"{place.stream}:{place.sequence.stream if place.sequence else 0}:{place.timestamp}"
        return f"on-{short_hash(self._agent, workflow, told)}" if told else subjects.new_run_id()

    async def _accept(self, run_id: str, workflow: str, task: Any) -> None:
        start = runs.new_start(run_id, self._agent, task, workflow=workflow)
        statuses = await runs.accept(self._resources.pool, [start])
        if statuses[run_id] == "accepted":
            runs.wake(self._resources.nats, run_id, self._agent)

    async def _bury(self, workflow: str, message: Msg, reason: str, consumer: PullConsumer | None) -> None:
        told = self._run_id(workflow, message, consumer)
        headers = orjson.dumps(dict(message.headers or {})).decode()
        identity = told if told.startswith("on-") else None
        data, kept, vault = message.data, reason[:2000], vault_of(self._resources.pool)
        if vault.seals:  # a reason may quote what was sent
            spot = Spot("dead_letter", self._agent)
            await vault.ready([spot])
            headers, kept = vault.seal(headers, spot), vault.seal(kept, spot)
            data = vault.seal(b64encode(data).decode(), spot).encode()
        await self._resources.pool.execute(
            _SQL["bury"], self._agent, workflow, message.subject, identity, headers, data, kept
        )
        self.buried += 1
        log.warning(
            "a message cannot become a run", action="trigger.dead_letter",
            agent=self._agent, workflow=workflow, subject=message.subject, reason=reason[:300],
        )  # fmt: skip

    # -- the clock ----------------------------------------------------------------------------------------------------

    async def _tick(self, workflow: str, trigger: OnClock) -> None:
        while True:
            try:
                await self._tick_once(workflow, trigger)
            except CONNECTION_ERRORS as error:
                log.warning("the schedule waits for Postgres", action="cron.retry", error=type(error).__name__)
                await asyncio.sleep(1.0)

    async def _tick_once(self, workflow: str, trigger: OnClock) -> None:
        key = (self._agent, workflow, f"{trigger.schedule.text} {trigger.schedule.zone.key}")
        pool, now = self._resources.pool, self._clock.now()
        fired: datetime = await pool.fetchval(_SQL["cron_mark"], *key, now)
        due: list[datetime] = []
        moment = trigger.schedule.next_after(fired)
        while moment is not None and moment <= now and len(due) < MOST_MISSED:
            due.append(moment)
            moment = trigger.schedule.next_after(moment)
        for at in due if trigger.catch_up else due[-1:]:
            # all replicas do this: the same moment is the same run
            said = {"scheduled_for": at.astimezone(UTC).isoformat()}
            await self._accept(f"cron-{short_hash(*key, at.isoformat())}", workflow, said)
            await pool.execute(_SQL["cron_fired"], *key, at)
        if moment is None:
            await asyncio.Event().wait()  # it never comes again
        elif not due or moment > now:
            await self._clock.sleep_until(moment)
