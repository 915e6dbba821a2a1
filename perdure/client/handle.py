"""A run, as the program that started or found it holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from perdure.client.connection import Connection
from perdure.client.events import follow
from perdure.client.types import RunEvent
from perdure.client.waiting import wait_for_end
from perdure.errors import RunFailed


class RunHandle:
    """One run. `run_id` is all it stands on: any process may make a handle of it with `Client.get`."""

    __slots__ = ("_connection", "agent", "run_id")

    def __init__(self, connection: Connection, run_id: str, agent: str) -> None:
        self._connection = connection
        self.run_id = run_id
        self.agent = agent

    def __repr__(self) -> str:
        return f"RunHandle(run_id={self.run_id!r}, agent={self.agent!r})"

    async def result(self, timeout: float | None = None) -> Any:
        """The run's output, as soon as it has one; at most `timeout` seconds are waited.

        Raises `RunFailed` when it ended otherwise, or cannot go on by itself (`blocked`, `needs_review`), and
        `TimeoutError` when the time is over: the run goes on, and `result` may be called again.
        """
        run = await self.ended(timeout)
        if run["status"] == "completed" and "output" in run:
            return run["output"]
        raise RunFailed(self.run_id, run["status"], run.get("error"))

    async def ended(self, timeout: float | None = None) -> dict[str, Any]:
        """The run as `run.get` gives it, once it has ended or cannot go on by itself. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(timeout):
                return await wait_for_end(self._connection, self.run_id)
        except TimeoutError:
            raise TimeoutError(f"run {self.run_id} has not ended within {timeout:g} s; it goes on") from None

    def events(
        self, *, after: int | None = None, index: int | None = None, known: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[RunEvent]:
        """The run's events from its first on, then as they come; the terminal event is the last.

        `after` is the seq of the last event that was seen: those up to it are left out, and of the passing ones that
        carry the same seq all that were kept, or those up to `index`.

        What the event stream has lost is told from the journal, so that it always ends when the run does; events that
        pass by (tokens, progress) are best effort. Two may differ in `seq` order by one commit. Raises `NotFound`,
        and `Unavailable` when the client is closed. A loop that is left early should be inside
        `contextlib.aclosing(run.events())`. `known` is the run as `run.get` has just given it, which spares asking. All
        who watch a run over one client are given the same events: change none.
        """
        return follow(self._connection, self.run_id, after=after, index=index, known=known)

    async def details(self, *, steps: bool = True, after: int = 0) -> dict[str, Any]:
        """The run as `run.get` gives it: `status`, `output` or `error`, times, and its `steps` with a seq over `after`.

        Raises `NotFound`.
        """
        if steps:
            return await self._connection.complete(await self._connection.details(self.run_id, after=after))
        found = await self._connection.insist("run.get", {"run_id": self.run_id, "steps": False})
        return await self._connection.complete(found)

    async def history(self) -> dict[str, Any]:
        """What a replay of the run reads: `run`, `rows`, `snapshots`; see `perdure.testing`. Raises `NotFound`."""
        page = await self._connection.insist("run.history", {"run_id": self.run_id})
        whole = {name: page[name] for name in ("run", "rows", "snapshots")}
        while page["next_after"] is not None:
            page = await self._connection.insist("run.history", {"run_id": self.run_id, "after": page["next_after"]})
            whole["rows"] += page["rows"]
            whole["snapshots"] |= page["snapshots"]
            whole["run"] = page["run"]
        await self._connection.fill(whole["run"], self.run_id)
        for row in whole["rows"]:
            await self._connection.fill(row, self.run_id, row["seq"])
        return whole

    async def tree(self) -> dict[str, Any]:
        """The run's family as `run.tree` gives it: `root`, and `runs` with `above`, `relation`, `status`, ….

        Children, runs that were started, forks and restarts, from where the family begins. Raises `NotFound`.
        """
        return await self._connection.insist("run.tree", {"run_id": self.run_id})

    async def signal(self, name: str, payload: Any = None, id: str | None = None) -> None:  # noqa: A002 -- the wire's word
        """Send a signal; it is kept until the run waits for it. The same `id` again counts once.

        Raises `NotFound`, `Conflict` when the run has ended, and `Unavailable`; without an `id` it is then not known
        whether the signal was sent.
        """
        said = {"run_id": self.run_id, "name": name, "payload": payload}
        if id is None:
            await self._connection.request("run.signal", said)
        else:
            await self._connection.insist("run.signal", {**said, "id": id})

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run and its children to end as `cancelled`; one that has ended stays as it is. Raises `NotFound`.

        What has begun is ended by its own code, which may tidy up and undo; `terminate` leaves it no time for that.
        """
        said = {"run_id": self.run_id, **({} if reason is None else {"reason": reason})}
        await self._connection.insist("run.cancel", said)

    async def terminate(self, reason: str | None = None) -> None:
        """End the run and its children at once: none of their code runs any more. Raises `NotFound`."""
        said = {"run_id": self.run_id, **({} if reason is None else {"reason": reason})}
        await self._connection.insist("run.terminate", said)

    async def pause(self) -> None:
        """Have the run begin nothing more, once the steps under way are over, until `Client.resume`.

        Its timers, signals and children stay. Raises `NotFound`, and `Conflict` for a run that has ended or is stopped.
        """
        await self._connection.insist("run.pause", {"run_id": self.run_id})

    async def approve(
        self,
        call_id: str,
        arguments_hash: str,
        decision: str = "approve",
        *,
        arguments: Mapping[str, Any] | None = None,
        reason: str | None = None,
        decided_by: str | None = None,
    ) -> None:
        """Decide on a tool call that waits for it: `approve`, `deny`, or `edit` with other `arguments`.

        `reason` is what the model reads, `decided_by` who is kept with the decision.

        Raises `Conflict` when it was decided already or its arguments have another hash, and `NotFound`.
        """
        said: dict[str, Any] = {
            "run_id": self.run_id,
            "call_id": call_id,
            "arguments_hash": arguments_hash,
            "decision": decision,
        }
        if arguments is not None:
            said["arguments"] = dict(arguments)
        if reason is not None:
            said["reason"] = reason
        if decided_by is not None:
            said["decided_by"] = decided_by
        await self._connection.request("run.approve", said)
