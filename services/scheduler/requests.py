"""The requests about runs that exist: `run.get`, `run.list`, `run.cancel`, `run.resume`, `run.signal`, …"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from nats.aio.client import Client

from perdure.agent import approvals
from perdure.bus.endpoint import Handler
from perdure.bus.service import Request
from perdure.engine import bulk, control, history, runs
from perdure.engine.room import MARGIN
from perdure.engine.rows import TERMINAL
from perdure.errors import InvalidRequest
from perdure.messages import (
    RunApprovals,
    RunApprove,
    RunBulk,
    RunEnd,
    RunFork,
    RunGet,
    RunHistory,
    RunList,
    RunRef,
    RunRestart,
    RunSignal,
    parse,
)
from perdure.settings import Settings
from perdure.store.audit import acting_pool
from perdure.store.postgres import Pool
from perdure.subjects import new_run_id
from services.scheduler.payloads import Payloads

MOMENT: Final = 0.5  # seconds that a request waits for a process to do what it was asked


LONGEST_CURSOR = 19  # characters: a turn is a bigint


class RunRequests:
    """One method a request."""

    def __init__(self, pool: Pool, nats: Client, settings: Settings, payloads: Payloads) -> None:
        self._payloads = payloads
        self._pool = pool
        self._acts = acting_pool(pool)  # for what the audit log shall know the actor of
        self._nats = nats
        self._settings = settings

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by the last word of their subject."""
        return {
            "get": self.get,
            "history": self.history,
            "list": self.list,
            "tree": self.tree,
            "cancel": self.cancel,
            "terminate": self.terminate,
            "pause": self.pause,
            "restart": self.restart,
            "bulk": self.bulk,
            "resume": self.resume,
            "fork": self.fork,
            "signal": self.signal,
            "approve": self.approve,
            "approvals": self.approvals,
        }

    async def get(self, request: Request) -> dict[str, Any]:
        """`run.get`: a run and its steps."""
        said = parse(RunGet, request.data)
        return await self._run(said.run_id, steps=said.steps, after=said.after)

    async def _run(self, run_id: str, *, steps: bool = False, after: int = 0) -> dict[str, Any]:
        """A run in a reply that one message carries."""
        room = self._nats.max_payload - MARGIN
        return await runs.get(self._pool, run_id, steps=steps, after=after, room=room)

    async def history(self, request: Request) -> dict[str, Any]:
        """`run.history`: what a replay of a run would read, and the cursor of the next page."""
        said = parse(RunHistory, request.data)
        return await history.page(self._pool, said.run_id, after=said.after, room=self._nats.max_payload - MARGIN)

    async def tree(self, request: Request) -> dict[str, Any]:
        """`run.tree`: the family of a run: children, forks, restarts, from where it begins."""
        return {"status": "success", **await runs.tree(self._pool, parse(RunRef, request.data).run_id)}

    async def list(self, request: Request) -> dict[str, Any]:
        """`run.list`: runs, newest first, and the cursor of the next page."""
        said = parse(RunList, request.data)
        if said.cursor is not None and not (said.cursor.isdecimal() and len(said.cursor) < LONGEST_CURSOR):
            raise InvalidRequest("field 'cursor': give the next_cursor of the page before, unchanged")
        before = None if said.cursor is None else int(said.cursor)
        found, cursor = await runs.list_runs(
            self._pool,
            agent=said.agent,
            statuses=said.status,
            workflow=said.workflow,
            version=said.version,
            created=(said.created_after, said.created_before),
            session_id=said.session_id,
            parent_run_id=said.parent_run_id,
            queue=said.queue,
            before=before,
            limit=said.limit,
        )
        return {"status": "success", "runs": found, "next_cursor": None if cursor is None else str(cursor)}

    async def cancel(self, request: Request) -> dict[str, Any]:
        """`run.cancel`: end a run and its children; one that has ended stays as it is."""
        said = parse(RunEnd, request.data)
        await control.cancel(self._acts, self._nats, said.run_id, said.reason or "cancelled by request")
        return await self._after(said.run_id, TERMINAL | {"blocked", "needs_review"})

    async def terminate(self, request: Request) -> dict[str, Any]:
        """`run.terminate`: end a run and its children at once; none of their code runs any more."""
        said = parse(RunEnd, request.data)
        await control.terminate(self._acts, self._nats, said.run_id, said.reason or "terminated by request")
        return await self._run(said.run_id)

    async def pause(self, request: Request) -> dict[str, Any]:
        """`run.pause`: a run ends the steps under way and begins nothing more until it is resumed."""
        run_id = parse(RunRef, request.data).run_id
        await control.pause(self._acts, self._nats, run_id)
        return await self._after(run_id, TERMINAL | {"blocked", "needs_review", "paused"})

    async def resume(self, request: Request) -> dict[str, Any]:
        """`run.resume`: bring a failed, dead, blocked, paused or reviewed run back."""
        run_id = parse(RunRef, request.data).run_id
        await control.resume(self._acts, self._nats, run_id)
        return await self._run(run_id)

    async def fork(self, request: Request) -> dict[str, Any]:
        """`run.fork`: a new run with the journal of this one up to a step."""
        said = parse(RunFork, request.data)
        new_id = said.new_run_id or new_run_id()
        await control.fork(self._acts, self._nats, said.run_id, said.step, new_id)
        return {**await self._run(new_id), "forked_from": said.run_id}

    async def restart(self, request: Request) -> dict[str, Any]:
        """`run.restart`: a new run with the task of this one, which stays as it is."""
        said = parse(RunRestart, request.data)
        new_id = said.new_run_id or new_run_id()
        await control.restart(self._acts, self._nats, said.run_id, new_id)
        return {**await self._run(new_id), "restarted_from": said.run_id}

    async def bulk(self, request: Request) -> dict[str, Any]:
        """`run.bulk`: one action on many runs, a page at a time."""
        return await bulk.page(self._acts, self._nats, parse(RunBulk, request.data))

    async def _after(self, run_id: str, there: frozenset[str]) -> dict[str, Any]:
        """The run, as soon as its status is one of `there`, but at most after a moment: it may take longer."""
        deadline = asyncio.get_running_loop().time() + MOMENT
        while True:
            run = await self._run(run_id)
            if run["status"] in there or asyncio.get_running_loop().time() > deadline:
                return run
            await asyncio.sleep(0.02)

    async def signal(self, request: Request) -> dict[str, Any]:
        """`run.signal`: a signal for a run, buffered until it waits for it."""
        said = parse(RunSignal, await self._payloads.whole(request.data))
        if "\n" in said.name:
            raise InvalidRequest("field 'name': a signal's name is one line")
        record = await control.signal(self._pool, self._nats, said.run_id, said.name, said.payload, said.id)
        status = "pending" if record["woken"] else record["status"]
        return {"status": status, "run_id": said.run_id, "agent": record["agent_name"], "sent": record["sent"]}

    async def approve(self, request: Request) -> dict[str, Any]:
        """`run.approve`: a person's decision about one tool call; a second one is a conflict."""
        said = parse(RunApprove, request.data)
        return await approvals.decide(self._acts, self._nats, said)

    async def approvals(self, request: Request) -> dict[str, Any]:
        """`run.approvals`: tool calls that wait, or waited, for a person, newest first."""
        said = parse(RunApprovals, request.data)
        status = None if said.status == "any" else said.status
        found, cursor = await approvals.listed(
            self._pool, status=status, agent=said.agent, run_id=said.run_id, cursor=said.cursor, limit=said.limit
        )
        return {"status": "success", "approvals": found, "next_cursor": cursor}
