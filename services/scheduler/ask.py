"""`run.ask`: accept a run, wait for its end, answer with it. The wait is in memory; the run is not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from perdure import subjects
from perdure.bus.service import Request
from perdure.engine import runs
from perdure.engine.room import MARGIN
from perdure.engine.rows import TERMINAL
from perdure.errors import RunFailed, TooLarge
from perdure.messages import RunAsk, parse
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Pool
from perdure.store.queries import load_queries
from services.scheduler.accept import Acceptor
from services.scheduler.payloads import Payloads

_SQL = load_queries("runs.sql")
log = structlog.get_logger(__name__)

LOOK_EVERY = 1.0  # seconds: the word of an end may be lost, the row is not
STOPPED = TERMINAL | {"blocked", "needs_review"}


class Asks:
    """Relays ends to those who asked. One subscription hears of every end; one query a second finds the missed ones."""

    def __init__(self, nats: Client, pool: Pool, acceptor: Acceptor, payloads: Payloads) -> None:
        self._payloads = payloads
        self._looks: set[asyncio.Task[None]] = set()
        self._nats = nats
        self._pool = pool
        self._acceptor = acceptor
        self._waiting: defaultdict[str, list[tuple[str, asyncio.Future[dict[str, Any]]]]] = defaultdict(list)

    async def open(self) -> None:
        """Listen for ends."""
        await self._nats.subscribe(subjects.run_ended("*", "*"), cb=self._ended)

    async def ask(self, request: Request) -> dict[str, Any]:
        """`run.ask.<agent>`. Raises `RunFailed` when the run ends without an output."""
        data = await self._payloads.whole(request.data)
        said = parse(RunAsk, data)
        start = self._acceptor.of(request.agent, said, len(data))
        if start.options is not None and start.options.keyed:
            await self._acceptor.accept(start)  # it may be another run, and that may have ended
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        mine = (start.agent_name, answer)
        self._waiting[start.run_id].append(mine)
        try:
            keyed = start.options is not None and start.options.keyed
            status = "known" if keyed else await self._acceptor.accept(start)
            if status != "accepted":
                await self._look([start.run_id])
            async with asyncio.timeout(said.timeout):
                reply = await answer
        except TimeoutError:
            return await self._still(start.run_id)
        finally:
            self._waiting[start.run_id].remove(mine)
            if not self._waiting[start.run_id]:
                del self._waiting[start.run_id]
        if "output" in (reply.get("large") or {}):
            raise TooLarge(
                f"the output of run {start.run_id} has {reply['large']['output']} bytes, and no message carries it: "
                f"read it in slices with {subjects.PAYLOAD_GET}, or with Client",
                run_id=start.run_id,
            )
        if reply["status"] == "completed" and "output" in reply:
            return reply
        raise RunFailed(start.run_id, reply["status"], reply.get("error"))

    async def _still(self, run_id: str) -> dict[str, Any]:
        reply = await runs.get(self._pool, run_id, steps=False)
        status = reply["status"] if reply["status"] in ("waiting", "paused") else "running"
        return {"status": status, "run_id": run_id, "agent": reply["agent"], "waiting_for": reply["waiting_for"]}

    async def _ended(self, message: Msg) -> None:
        agent, _, run_id = message.subject.removeprefix(f"{subjects.RUN_ENDED}.").partition(".")
        # NATS lets an agent tell the ends of its own runs alone.
        if any(asked == agent for asked, _ in self._waiting.get(run_id, ())):
            reply = orjson.loads(message.data)
            if reply.get("look"):
                task = asyncio.create_task(self._look_patiently([run_id]))
                self._looks.add(task)
                task.add_done_callback(self._looks.discard)
            else:
                self._tell(run_id, reply)

    def _tell(self, run_id: str, reply: dict[str, Any]) -> None:
        for _, answer in self._waiting.get(run_id, ()):
            if not answer.done():
                answer.set_result(reply)

    async def run(self) -> None:
        """Look for ends whose word was lost, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._waiting:
                await self._look_patiently(list(self._waiting))

    async def _look_patiently(self, run_ids: list[str]) -> None:
        try:
            await self._look(run_ids)
        except CONNECTION_ERRORS as error:
            log.info("ends not looked for; the next look is soon", action="ask.retry", error=type(error).__name__)

    async def _look(self, run_ids: list[str]) -> None:
        records = await self._pool.fetch(_SQL["outcomes"], run_ids)
        ended = [record for record in records if record["status"] in STOPPED]
        for reply in await runs.outcomes(self._pool, ended, self._nats.max_payload - MARGIN):
            self._tell(reply["run_id"], reply)
