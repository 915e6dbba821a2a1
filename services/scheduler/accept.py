"""Accepting runs, grouped: one commit for all that came while the last one was on its way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from nats.aio.client import Client

from perdure import subjects
from perdure.bus.outgoing import Outgoing
from perdure.bus.service import Request
from perdure.engine import runs
from perdure.engine.accepting import accept_keyed
from perdure.engine.clock import Clock, SystemClock
from perdure.engine.codec import encode
from perdure.engine.points import reach
from perdure.engine.rows import Start
from perdure.engine.start_options import DEBOUNCE_ROUNDS, StartOptions
from perdure.engine.stored import task_spot
from perdure.errors import ApiError, Conflict, InvalidRequest, TooLarge, Unavailable
from perdure.messages import PLAIN, Callback, RunStart, parse
from perdure.observe import tracing
from perdure.observe.metrics import Reading
from perdure.settings import Settings
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Kept, Pool
from perdure.store.vault import vault_of
from perdure.webhooks import check_url
from services.scheduler.payloads import Payloads
from services.scheduler.slots import Slots

log = structlog.get_logger(__name__)

PATIENCE = 5.0  # seconds that an accept waits for Postgres before the caller is told
LINE = 20_000
KEYED = 4  # starts with a key that are decided at a time, each in a transaction of its own
NO_ANSWER = "Postgres does not answer; nothing is known to be accepted. Ask again with the same run_id"


@dataclass(slots=True, eq=False)
class _Waiting:
    start: Start
    answer: asyncio.Future[str]
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class Acceptor:
    """Makes runs of requests. An accepted run is a committed row; the wake-up after it may be lost."""

    def __init__(
        self, pool: Pool, nats: Client, settings: Settings, payloads: Payloads, clock: Clock | None = None
    ) -> None:
        self._payloads = payloads
        self._pool = pool
        self._kept = Kept(pool)
        self._nats = nats
        self._outgoing = Outgoing(nats)
        self._slots = Slots(nats, self._outgoing)
        self._settings = settings
        self._clock: Clock = clock or SystemClock()
        self._line: list[_Waiting] = []
        self.results: Counter[str] = Counter()  # starts, by what they came to
        self._keyed = asyncio.Semaphore(KEYED)
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Hear which processes have slots."""
        await self._slots.open()

    async def start(self, request: Request) -> dict[str, Any]:
        """`run.start.<agent>`."""
        data = await self._payloads.whole(request.data)
        start = self.of(request.agent, parse(RunStart, data), len(data))
        await self.accept(start)
        return {"status": "accepted", "run_id": start.run_id}

    def of(self, agent: str, said: RunStart, size: int) -> Start:
        """A run of `agent` as `said` in `size` bytes. Raises `TooLarge` naming the limit."""
        if size > self._settings.max_payload:
            raise TooLarge(
                f"the request has {size} bytes; the limit is {self._settings.max_payload} (PERDURE_MAX_PAYLOAD)"
            )
        start = runs.new_start(
            said.run_id or subjects.new_run_id(),
            agent,
            said.task,
            workflow=said.workflow,
            session_id=said.session_id,
            options=options_of(said, self._clock.now()),
        )
        if said.callback is not None:
            start.callback = self._callback(said.callback)
        start.trace = tracing.current()
        return start

    def _callback(self, said: Callback) -> str:
        target = said.model_dump(exclude_none=True)
        if said.url is not None:
            try:
                check_url(said.url, private=self._settings.callback_private)
            except ValueError as error:
                raise InvalidRequest(f"field 'callback.url': {error}") from None
            target["secret"] = said.secret or self._settings.callback_secret
            if target["secret"] is None:
                raise InvalidRequest("field 'callback.secret' is missing, and PERDURE_CALLBACK_SECRET is not set")
        return encode(target, what="callback")

    async def accept(self, start: Start) -> str:
        """Commit a run; its status. Raises `Conflict`, or `Unavailable` when Postgres does not answer in time.

        A start with a key may be another run: `start.run_id` says which, once this is back.
        """
        if start.options is not None and start.options.keyed:
            status = await self._accept_keyed(start)
            self.results["accepted"] += 1
            return status
        if len(self._line) >= LINE:
            self.results["refused"] += 1
            raise Unavailable(f"{LINE} runs wait to be accepted; ask again in a moment")
        if (vault := vault_of(self._pool)).seals:  # not in the batch: a tenant without a key holds up nobody else
            try:
                await vault.ready([task_spot(start.run_id)])
            except OSError as error:
                self.results["refused"] += 1
                raise Unavailable(f"{error}; ask again in a moment", run_id=start.run_id) from error
        waiting = _Waiting(start, asyncio.get_running_loop().create_future())
        self._line.append(waiting)
        self._wake.set()
        status = await waiting.answer
        self.results[status if status in ("accepted", "conflict") else "known"] += 1
        if status == "conflict":
            raise Conflict(f"there is a run {start.run_id!r} with another task, agent or session", run_id=start.run_id)
        return status

    async def _accept_keyed(self, start: Start) -> str:
        async with self._keyed:
            for patience in (0.1, 0.5, 2.0, None):
                try:
                    status = await accept_keyed(self._pool, start, self._clock.now())
                    break
                except CONNECTION_ERRORS as error:
                    log.warning("accept failed", action="accept.retry", runs=1, error=type(error).__name__)
                    if patience is None:
                        raise Unavailable(NO_ANSWER, run_id=start.run_id) from error
                    await asyncio.sleep(patience)
        if status == "pending":
            runs.wake(self._nats, start.run_id, start.agent_name)
        return status

    def readings(self) -> Iterator[Reading]:
        """What is counted of starts."""
        for result, count in self.results.items():
            yield "perdure_runs_accepted_total", (result,), count
        yield "perdure_starts_waiting", (), len(self._line)
        yield "perdure_runs_claimed_at_start_total", (), self._slots.filled

    async def run(self) -> None:
        """Commit until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._line:
                    batch, self._line = self._cut(self._line)
                    await self._try(batch)
        finally:
            await self._kept.release()

    async def _try(self, batch: list[_Waiting]) -> None:
        try:
            await self._commit(batch)
        except CONNECTION_ERRORS as error:
            await self._put_back(batch, error)
        except Exception as error:  # noqa: BLE001 -- told to each caller, or to the guilty one alone
            await self._split(batch, error)

    @staticmethod
    def _cut(line: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        """A batch in which each run id stands once, and the rest."""
        seen: set[str] = set()
        batch: list[_Waiting] = []
        rest: list[_Waiting] = []
        for waiting in line:
            fits = len(batch) < 1000 and waiting.start.run_id not in seen
            seen.add(waiting.start.run_id)
            (batch if fits else rest).append(waiting)
        return batch, rest

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        reach("accept.before")
        starts = [waiting.start for waiting in batch]
        self._slots.place(starts)
        try:
            statuses = await runs.accept(self._kept, starts)
        finally:
            self._slots.settle(starts)
        reach("accept.after")
        self._slots.tell(starts)
        for waiting in batch:
            start = waiting.start
            status = statuses.get(start.run_id, "conflict")
            if status in ("accepted", "pending") and start.held is None:
                self._outgoing.put(subjects.work(start.agent_name), start.run_id.encode())
                self._slots.ask(start.agent_name)
            if not waiting.answer.done():
                waiting.answer.set_result(status)
        self._outgoing.flush()

    async def _put_back(self, batch: list[_Waiting], error: BaseException) -> None:
        """Postgres is away: try again for a while; accepting twice is harmless, losing would not be."""
        log.warning("accept failed", action="accept.retry", runs=len(batch), error=type(error).__name__)
        now = asyncio.get_running_loop().time()
        for waiting in batch:
            if waiting.answer.done():
                continue
            if now - waiting.since > PATIENCE:
                waiting.answer.set_exception(Unavailable(NO_ANSWER, run_id=waiting.start.run_id))
            else:
                self._line.append(waiting)
        await asyncio.sleep(0.1)

    async def _split(self, batch: list[_Waiting], error: Exception) -> None:
        """One start that Postgres refuses must not fail its neighbours."""
        if len(batch) > 1:
            for waiting in batch:
                try:
                    await self._commit([waiting])
                except CONNECTION_ERRORS as lost:
                    await self._put_back([waiting], lost)
                except Exception as alone:  # noqa: BLE001 -- told to its caller
                    self._fail(waiting, alone)
        else:
            self._fail(batch[0], error)

    @staticmethod
    def _fail(waiting: _Waiting, error: Exception) -> None:
        log.error("start refused", action="accept.refused", run_id=waiting.start.run_id, exc_info=error)
        if not waiting.answer.done():
            refused = error if isinstance(error, ApiError) else Unavailable("the run could not be stored; see the log")
            waiting.answer.set_exception(refused)


def options_of(said: RunStart, now: datetime) -> StartOptions | None:
    """What a request says beside its task, None when it says nothing."""
    if said.model_fields_set <= PLAIN:
        return None  # as nearly all do
    options = StartOptions(
        queue=said.queue,
        priority=said.priority,
        fair_key=said.fair_key,
        begin_at=said.begins(now),
        dedup_key=said.dedup_key,
        dedup_window=said.dedup_window,
        debounce_key=said.debounce_key,
        debounce=said.debounce or 0.0,
        debounce_max=said.debounce_max or (said.debounce or 0.0) * DEBOUNCE_ROUNDS,
    )
    return None if options == StartOptions() else options
