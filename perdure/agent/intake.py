"""Makes runs of what triggers hear: validated, deduplicated, acknowledged once committed."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from perdure import subjects
from perdure.agent.base import BaseAgent, Resources
from perdure.agent.triggers import OnSubject, triggers_of
from perdure.bus.pull import PullConsumer
from perdure.engine import WorkflowDefinition, runs
from perdure.engine.codec import short_hash
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.queries import load_queries
from perdure.store.vault import Spot, vault_of

SLOTS: Final = 256

_SQL = load_queries("triggers.sql")
log = structlog.get_logger()


class Unfit(Exception):
    """A message that cannot become a run; the text says why."""


class Triggers:
    """The triggers of one agent's process."""

    def __init__(self, agent: BaseAgent, workflows: Mapping[str, WorkflowDefinition], resources: Resources) -> None:
        self._agent = agent.name
        self._workflows = workflows
        self._resources = resources
        self._found = [(name, one) for name, one in triggers_of(agent) if isinstance(one, OnSubject)]
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._consumers: list[PullConsumer] = []
        self._subscriptions: list[Subscription] = []
        self.buried = 0

    async def start(self) -> None:
        """Listen."""
        for workflow, trigger in self._found:
            if trigger.stream is not None:
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
