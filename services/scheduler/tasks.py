"""`task.<agent>`: a plain JetStream publish becomes a durable run, also while no agent process is up."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.pull import PullConsumer
from perdure.engine.codec import short_hash
from perdure.engine.points import reach
from perdure.errors import ApiError, Conflict, Unavailable
from perdure.messages import RunStart, parse
from perdure.observe import tracing
from services.scheduler.accept import Acceptor

log = structlog.get_logger(__name__)

SLOTS = 512
ACK_WAIT = 10.0  # seconds: longer than an accept may take, and as long as a task of a lost scheduler waits


class TaskIntake:
    """Turns task messages into runs; a message is acked once its run is committed."""

    def __init__(self, nats: Client, acceptor: Acceptor) -> None:
        self._nats = nats
        self._acceptor = acceptor
        self._tasks: set[asyncio.Task[Any]] = set()
        self._consumer = PullConsumer(
            nats,
            stream=subjects.STREAM_TASKS,
            subject=f"{subjects.TASK}.>",
            durable=subjects.DURABLE_TASKS,
            room=lambda: SLOTS - len(self._tasks),
            take=self._take,
            ack_wait=ACK_WAIT,
        )

    async def run(self) -> None:
        """Take tasks until cancelled."""
        await self._consumer.run()

    def reset(self) -> None:
        """NATS was away."""
        self._consumer.reset()

    def _take(self, message: Msg) -> None:
        task = asyncio.get_running_loop().create_task(self._accept(message))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._consumer.more()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task message not taken; it comes again", action="task.failed", exc_info=error)

    async def _accept(self, message: Msg) -> None:
        try:
            agent = subjects.agent_name(message.subject.removeprefix(f"{subjects.TASK}."))
            said = parse(RunStart, message.data)
            start = self._acceptor.of(agent, said, len(message.data))
            start.trace = tracing.told(message.headers)
            if said.run_id is None:
                start.run_id = run_id_of(agent, message)
            reach("task.before", start.run_id)
            await self._acceptor.accept(start)
            reach("task.after", start.run_id)
        except Unavailable as error:
            log.warning("task message waits", action="task.retry", subject=message.subject, error=error.message)
            await message.nak(delay=1)
            return
        except (ApiError, ValueError, TypeError) as error:
            if not isinstance(error, Conflict):
                log.warning("task message refused", action="task.refused", subject=message.subject, error=str(error))
            await message.term()
            return
        self._consumer.ack(message)


def run_id_of(agent: str, message: Msg) -> str:
    """The run id of a task message: of its `Nats-Msg-Id`, else of its place in the stream; the same each delivery."""
    told = (message.headers or {}).get("Nats-Msg-Id")
    sequence = message.metadata.sequence
    return "t-" + short_hash(
        agent, told or f"{message.metadata.stream}:{sequence.stream if sequence else 0}:{message.metadata.timestamp}"
    )
