"""Claims, grouped: one statement raises the epochs of the runs that woke this process, a later one reads journals."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from nats.aio.msg import Msg

from perdure.engine.codec import decode
from perdure.engine.points import reach
from perdure.engine.queues import claim_queued, where_they_stand
from perdure.engine.rows import ClaimedRun, JournalRow, claimed, journaled
from perdure.engine.stored import open_claims
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Kept, Pool, PooledConnection

if TYPE_CHECKING:
    import asyncpg

    from perdure.config.snapshot import AgentConfig
    from perdure.engine.execution import Execution
    from perdure.engine.worker import Worker

log = structlog.get_logger(__name__)

MAX_SNAPSHOTS = 256
AUDIT_EVERY = 5.0
ON_THE_WAY = 1.0  # seconds after which the word of a run that was claimed for this process is taken for lost
ALONE = 5.0  # seconds that a suspected run has its process for itself, at most
OTHERS = 10.0  # seconds that the others have then, until the next one is claimed alone
AMONG = 0.2  # seconds over which replicas spread their tries to take one


class _Snapshots(OrderedDict[str, "AgentConfig"]):
    """The snapshots that runs in memory may stand on, the oldest leaving first."""

    def __setitem__(self, digest: str, config: AgentConfig) -> None:
        super().__setitem__(digest, config)
        while len(self) > MAX_SNAPSHOTS:
            self.popitem(last=False)


class Claims:
    """Turns wake-ups into runs that this process holds."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._queue: dict[str, list[Msg]] = {}
        self._queues: set[str] = set()  # in which a place may have come up
        self._wake = asyncio.Event()
        self._kept = Kept(worker.pool)
        self._claiming = asyncio.Lock()
        self._stopped = False
        self._missed = False  # a wake-up led to no claim: its run may be one that is claimed alone
        self._look_for_suspects = False
        self._suspects_from = 0.0  # loop time
        self._audit_at = worker.loop.time() + AUDIT_EVERY
        self._strays: set[tuple[str, int]] = set()  # runs and epochs that the last audit found without an execution
        self.snapshots: OrderedDict[str, AgentConfig] = _Snapshots()

    @property
    def waiting(self) -> int:
        """Wake-ups that are not decided yet."""
        return len(self._queue)

    def add(self, run_id: str, message: Msg | None) -> None:
        """A run wants to be claimed; `message` is acked once that is decided."""
        messages = self._queue.setdefault(run_id, [])
        if message is not None:
            messages.append(message)
        self._wake.set()

    def look(self, queue: str) -> None:
        """A place in `queue` may have come up."""
        self._queues.add(queue)
        self._wake.set()

    async def stop(self) -> None:
        """Claim nothing more; comes back when a claim that is on its way has been decided."""
        self._stopped = True
        async with self._claiming:
            self._queue.clear()  # not acked: delivered again, elsewhere
            self._queues.clear()

    async def run(self) -> None:
        """Claim until cancelled."""
        try:
            await self._run()
        finally:
            await self._kept.release()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._audit_at):
                    await self._wake.wait()
            self._wake.clear()
            if loop.time() >= self._audit_at:
                self._look_for_suspects = True
                self._audit_at = loop.time() + await self._audit()
            while self._queue or self._queues:
                if not await self._claim_asked():
                    break
            if self._stopped:
                return
            if self._look_for_suspects:
                try:
                    async with self._claiming:
                        await self._suspects()
                except CONNECTION_ERRORS as error:
                    log.warning("suspects not claimed", action="claim.failed", error=type(error).__name__)

    async def _claim_asked(self) -> bool:
        """Claim what wake-ups have asked for, and answer them; false when it could not be done now."""
        batch, self._queue = self._queue, {}
        queues, self._queues = self._queues, set()
        try:
            async with self._claiming:
                if self._stopped:
                    return False
                others = await self._claim(list(batch), queues) if batch else set()
                for queue in sorted(queues):
                    await self._claim_queued(queue)
                self._look_for_suspects |= bool(queues) or self._missed
        except CONNECTION_ERRORS as error:
            # Not acked: the claim may have committed all the same, so the audit looks first.
            log.warning("claim failed", action="claim.failed", runs=len(batch), error=type(error).__name__)
            self._queue = {**batch, **self._queue}
            self._queues |= queues
            self.audit()
            await asyncio.sleep(0.2)
            return False
        reach("claim.begun")
        for run_id, messages in batch.items():
            for message in messages:
                (self._worker.pass_on if run_id in others else self._worker.ack)(message)
        return True

    def audit(self) -> None:
        """Compare what this process holds with what the database says, now."""
        self._audit_at = self._worker.loop.time()
        self._wake.set()

    async def _audit(self) -> float:
        """Give back the runs that the database says this process holds, and it does not; the seconds to the next look.

        A claim's answer was lost, or the word of runs that were claimed for this process. That may still be on its way:
        a run is given back when it was missed twice.
        """
        worker = self._worker
        try:
            rows = await worker.pool.fetch(worker.queries["held"], worker.process_id)
            strays = {(row["run_id"], row["epoch"]) for row in rows if row["run_id"] not in worker.executions}
            again, self._strays = strays & self._strays, strays - self._strays
            if again:  # or runs that ended while the answer was on its way: those are not given back
                given = await worker.give_back(sorted(again))
                if given:
                    log.warning("runs without an execution are given back", action="claim.orphans", runs=given)
        except CONNECTION_ERRORS as error:
            log.info("audit postponed", action="claim.audit_failed", error=type(error).__name__)
            return 0.2
        return ON_THE_WAY if self._strays else AUDIT_EVERY

    async def _claim(self, run_ids: list[str], queues: set[str]) -> set[str]:
        """Claim what is ours; the runs whose version only other processes run. Adds the queues in which runs stand."""
        worker = self._worker
        reach("claim.before")
        config, process_id = await self.newest_config(), worker.process_id
        # Also those that are in memory: a pending run that is there is one we have lost, or are leaving.
        records = await self._take(run_ids, config, process_id)
        reach("claim.after")
        taken = [claimed(worker.agent_name, record) for record in records]
        await self._begin(taken, config, process_id, where=self._kept)
        missed = set(run_ids) - {run.run_id for run in taken}
        self._missed = bool(missed)
        if not missed:
            return missed
        standing = await where_they_stand(worker.pool, worker.agent_name, list(missed))
        queues.update(standing.values())
        return await self._others(missed - standing.keys())

    async def _take(
        self, run_ids: list[str], config: AgentConfig, process_id: str, *, suspects: bool = False
    ) -> list[asyncpg.Record]:
        """Raise the epochs of those of these runs that can be ours. Only under `_claiming`."""
        worker, offer = self._worker, self._worker.offer
        said = (config.hash, config.revision, offer.names, offer.versions, offer.hashes, offer.newest, suspects)
        async with self._kept.acquire() as connection:
            return await connection.fetch(worker.queries["claim"], process_id, run_ids, worker.agent_name, *said)

    async def _claim_queued(self, queue: str) -> None:
        """Claim as many of a queue's next runs as its bounds and our slots leave open."""
        worker = self._worker
        slots = worker.slots
        if slots <= 0:
            return  # the end of a run here asks again, and the scheduler asks others
        reach("claim.before")
        config, process_id = await self.newest_config(), worker.process_id
        records = await claim_queued(worker.pool, process_id, worker.agent_name, queue, slots, config, worker.offer)
        reach("claim.after")
        taken = [claimed(worker.agent_name, record) for record in records]
        await self._begin(taken, config, process_id, where=self._kept)

    async def _suspects(self) -> None:
        """Claim the runs that two processes were lost with, one after the other, each while no other run is here.

        If one takes this process with it, too, no neighbour's attempts are spent. It has the process for itself until
        it has written a row or left, or for `ALONE`: then it has lived longer than what kills at once.
        """
        worker = self._worker
        if worker.loop.time() < self._suspects_from:
            return  # the look of the audit, at the latest, comes after it
        self._look_for_suspects = False
        if await self._suspect(-1) is None:
            return
        await asyncio.sleep(random.random() * AMONG)  # noqa: S311 -- of several replicas one takes it, the others go on
        turn = -1
        try:
            while worker.takes and not self._stopped and (found := await self._suspect(turn)) is not None:
                turn = found["turn"]
                log.warning("a run is claimed alone", action="claim.alone", run_id=found["run_id"])
                if await worker.part() and not await self._claim_alone(found["run_id"], found["queue_name"]):
                    self._suspects_from = worker.loop.time() + OTHERS
                    return
        finally:
            if worker.alone is not None:
                worker.rejoin()

    async def _suspect(self, after: int) -> asyncpg.Record | None:
        """The next run that is claimed alone, later than the turn `after`."""
        worker, offer = self._worker, self._worker.offer
        return await worker.pool.fetchrow(
            worker.queries["suspect"], worker.agent_name, after, offer.names, offer.versions
        )

    async def _claim_alone(self, run_id: str, queue: str) -> bool:
        """Claim a run, or the first one of its queue that is suspected; False when its time was over before a row."""
        worker = self._worker
        worker.alone = run_id
        config, process_id = await self.newest_config(), worker.process_id
        offer = worker.offer
        if queue:
            records = await claim_queued(
                worker.pool, process_id, worker.agent_name, queue, 1, config, offer, suspects=True
            )
        else:
            records = await self._take([run_id], config, process_id, suspects=True)
        if not records:
            return True  # another process was quicker
        worker.alone = records[0]["run_id"]
        taken = [claimed(worker.agent_name, record) for record in records]
        await self._begin(taken, config, process_id, where=self._kept)
        execution = worker.executions.get(worker.alone)
        deadline = worker.loop.time() + ALONE
        while execution is not None and worker.executions.get(execution.run_id) is execution and not execution.wrote:
            if self._stopped or worker.loop.time() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def newest_config(self) -> AgentConfig:
        """The configuration that is live in this process; kept, for runs to stand on."""
        config = self._worker.newest_config()
        if config.hash not in self.snapshots:
            await self._worker.keep_snapshot(config)
        return config

    async def _begin(
        self, taken: list[ClaimedRun], config: AgentConfig, process_id: str, *, where: Kept | Pool
    ) -> None:
        """Read the journals of claimed runs, and execute them.

        `where` is the claim's connection, which is free by now: what steps ask of the pool does not stand before it.
        """
        worker = self._worker
        histories: dict[str, list[JournalRow]] = {}
        if lived := [run for run in taken if run.epoch > 1 or run.base_seq > 0]:
            async with where.acquire() as connection:
                histories = await self._histories(connection, lived)
        unreadable = await open_claims(worker.pool, taken, histories)
        for run_id in unreadable:
            histories.pop(run_id, None)
        snapshots = {config.hash: config, **await self._load_snapshots(taken, histories)}
        if worker.process_id != process_id:
            return  # taken for lost in the meantime: what it claimed is given to others
        for run in taken:
            if run.run_id in worker.executions:
                worker.executions[run.run_id].close()  # an earlier epoch of ours
            stands_on = snapshots[run.config_hash or config.hash]
            if run.run_id in unreadable:
                worker.stop_unreadable(run, stands_on, unreadable[run.run_id])
            else:
                worker.begin(run, histories.get(run.run_id, []), stands_on, snapshots)

    async def begin_held(self, runs: list[ClaimedRun], process_id: str) -> None:
        """Execute runs that a scheduler has claimed for this process; those that it cannot have now are given back."""
        worker = self._worker
        held = [(run.run_id, run.epoch) for run in runs]
        reach("claim.after")
        try:
            if self._takes_held:
                config = await self.newest_config()
                stale = [run for run in runs if run.config_hash != config.hash]
                if stale:  # a change came between the grant and the claim: they begin with what is live
                    ids, epochs = [run.run_id for run in stale], [run.epoch for run in stale]
                    await worker.pool.execute(worker.queries["stand_on"], ids, epochs, config.hash, config.revision)
                    for run in stale:
                        run.config_hash, run.config_revision = config.hash, config.revision
                new = [run for run in runs if run.run_id not in worker.executions]
                await self._begin(new, config, process_id, where=worker.pool)
                reach("claim.begun")
            if not self._takes_held:
                for run in runs:
                    if (execution := worker.executions.get(run.run_id)) is not None and execution.epoch == run.epoch:
                        execution.close()
                await worker.give_back(held)
        except CONNECTION_ERRORS as error:
            log.warning("runs not begun; the audit finds them", action="claim.failed", error=type(error).__name__)

    @property
    def _takes_held(self) -> bool:
        return self._worker.takes and not self._stopped and self._worker.alone is None

    async def again(self, execution: Execution) -> None:
        """Replay a run that this process holds, from the journal, as another process would after it."""
        worker = self._worker
        run = replace(execution.run, cancel_reason=execution.cancel_reason)
        histories = await self._histories(worker.pool, [run])
        unreadable = await open_claims(worker.pool, [], histories)
        if unreadable:
            raise unreadable[run.run_id]
        snapshots = await self._load_snapshots([run], histories)
        if worker.executions.get(run.run_id) is execution:
            execution.close()
            config = snapshots[run.config_hash] if run.config_hash else worker.newest_config()
            worker.begin(run, histories.get(run.run_id, []), config, snapshots)

    async def _others(self, run_ids: set[str]) -> set[str]:
        if not run_ids:
            return set()
        worker = self._worker
        found = await worker.pool.fetch(worker.queries["offered_elsewhere"], list(run_ids), worker.process_id)
        return {record["run_id"] for record in found}

    async def _histories(self, where: Pool | PooledConnection, taken: list[ClaimedRun]) -> dict[str, list[JournalRow]]:
        query = self._worker.queries["history"]
        records = await where.fetch(query, [run.run_id for run in taken], [run.base_seq for run in taken])
        histories: defaultdict[str, list[JournalRow]] = defaultdict(list)
        for record in records:
            histories[record["run_id"]].append(journaled(record))
        return histories

    async def _load_snapshots(
        self, taken: list[ClaimedRun], histories: dict[str, list[JournalRow]]
    ) -> dict[str, AgentConfig]:
        """Every snapshot that these runs stand on, or adopted earlier, by hash."""
        wanted = {run.config_hash for run in taken if run.config_hash}
        wanted |= {
            decode(row.result)["hash"]
            for rows in histories.values()
            for row in rows
            if row.kind == "config" and row.result is not None
        }
        found = {digest: self.snapshots[digest] for digest in wanted if digest in self.snapshots}
        missing = [digest for digest in wanted if digest not in found]
        if not missing:
            return found
        worker = self._worker
        for record in await worker.pool.fetch(worker.queries["snapshots"], worker.agent_name, missing):
            config = worker.rebuild(decode(record["values"]), record["revision"])
            self.snapshots[record["hash"]] = found[record["hash"]] = config
        for digest in missing:
            if digest not in found:
                log.error("snapshot is gone; the newest is used", action="claim.snapshot_gone", hash=digest)
                found[digest] = worker.newest_config()
        return found
