"""The client of a running platform."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import uuid4

from nats.aio.client import Client as Nats

from perdure import subjects
from perdure.client.connection import Connection
from perdure.client.handle import RunHandle
from perdure.client.presence import Replica, replicas
from perdure.client.schedules import Schedules
from perdure.client.types import BulkAction, BulkCount, BulkPage, RunPage, SessionPage
from perdure.errors import InvalidRequest
from perdure.settings import Settings
from perdure.starting import StartKeywords


class Client(Schedules):
    """Starts, finds and steers runs from any program; it needs NATS alone (`NATS_URL`).

    ```python
    async with Client() as client:
        run = await client.start("invoices", {"file": "may.csv"})
        print(await run.result())
    ```

    Without `async with` it connects on first use, and `close` ends it. It belongs to one event loop. Every method
    raises `SetupError` when no NATS server answers, `InvalidRequest` for a name or an id that cannot be one, and
    `Unavailable` when a part of the platform is away; nothing accepted is lost by that.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._connection = Connection(settings)

    @classmethod
    def over(cls, nats: Nats, settings: Settings) -> Self:
        """A client on a connection that a process has already; `close` leaves that open."""
        made = cls()
        made._connection = Connection(settings, nats)
        return made

    async def __aenter__(self) -> Self:
        await self._connection.nats()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Runs go on. Safe to repeat."""
        await self._connection.close()

    async def start(
        self,
        agent: str,
        task: Any,
        *,
        workflow: str = "run",
        run_id: str | None = None,
        session_id: str | None = None,
        callback: str | Mapping[str, str] | None = None,
        **options: Unpack[StartKeywords],
    ) -> RunHandle:
        """Have a run accepted; when this returns, it is durable, whether or not the agent is up.

        `task` is any JSON. The same `run_id` and task again are the same run; with another task it is a `Conflict`.

        The run stands in `queue`, or in that of its agent when it has a `priority` (-1000 to 1000, the higher one
        first) or a `fair_key` (runs of different keys take turns). It begins after `delay`, or at `start_at`. While a
        run holds `dedup_key` (to its end, or for `dedup_window`) a start with the key is that run. Starts with one
        `debounce_key` become one run with the newest task: `debounce` after the last of them, `debounce_max` after the
        first at the latest. Durations are seconds or a `timedelta`.

        `callback` is an HTTPS URL or a NATS subject that is told of its end, at least once; a mapping with `url` may
        have a `secret` beside it, `secret://env/PERDURE_CALLBACK_SECRET_…`.
        """
        name = _checked(subjects.agent_name, agent)
        said = self._start(task, workflow, run_id, session_id) | _said(options)
        if callback is not None:
            said["callback"] = callback if isinstance(callback, str) else dict(callback)
        accepted = await self._connection.insist(subjects.run_start(name), said)
        return RunHandle(self._connection, str(accepted["run_id"]), name)

    async def ask(
        self,
        agent: str,
        task: Any,
        *,
        workflow: str = "run",
        run_id: str | None = None,
        session_id: str | None = None,
        timeout: float | None = 60.0,
        **options: Unpack[StartKeywords],
    ) -> Any:
        """Start a run and return its output, waiting at most `timeout` seconds (None: as long as it takes).

        `options` are those of `start`. Raises `RunFailed` when it ends without one, `TimeoutError` when the time is
        over (the run goes on).
        """
        run = await self.start(agent, task, workflow=workflow, run_id=run_id, session_id=session_id, **options)
        return await run.result(timeout)

    async def get(self, run_id: str) -> RunHandle:
        """A run that exists. Raises `NotFound`."""
        found = await self._connection.insist("run.get", {"run_id": _run_id(run_id), "steps": False})
        return RunHandle(self._connection, str(found["run_id"]), str(found["agent"]))

    def run(self, run_id: str) -> RunHandle:
        """The handle of a run that is known to exist, without asking."""
        return RunHandle(self._connection, _run_id(run_id), "")

    async def request(
        self, subject: str, payload: Mapping[str, Any] | None = None, *, timeout: float = 5.0, repeat: bool = False
    ) -> dict[str, Any]:
        """Any request of the platform, such as `run.approvals`: its reply. Raises the `ApiError` that answers it.

        `repeat` says that it may safely be made twice: it is, while a part of the platform restarts.
        """
        if repeat:
            return await self._connection.insist(subject, payload or {})
        return await self._connection.request(subject, payload or {}, timeout=timeout)

    async def list(
        self,
        *,
        agent: str | None = None,
        status: str | Sequence[str] | None = None,
        workflow: str | None = None,
        version: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        session_id: str | None = None,
        parent_run_id: str | None = None,
        queue: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs, newest first, `limit` (1 to 500) at a time; `cursor` is the `next_cursor` of the page before."""
        said = {
            "agent": None if agent is None else _checked(subjects.agent_name, agent),
            "status": status if status is None or isinstance(status, str) else [*status],
            "workflow": workflow,
            "version": version,
            "created_after": created_after,
            "created_before": created_before,
            "session_id": session_id,
            "parent_run_id": parent_run_id,
            "queue": queue,
            "cursor": cursor,
        }
        wanted = {key: value for key, value in said.items() if value is not None}
        reply = await self._connection.insist("run.list", {**wanted, "limit": limit})
        return RunPage(reply["runs"], reply.get("next_cursor"))

    async def queues(self, queue: str | None = None) -> Sequence[Mapping[str, Any]]:
        """The queues, or one: `pending`, `delayed`, `running`, the limits, and what its runs wait for."""
        reply = await self._connection.insist(subjects.QUEUE_LIST, {} if queue is None else {"queue": queue})
        found: Sequence[Mapping[str, Any]] = reply["queues"]
        return found

    async def resume(self, run_id: str) -> RunHandle:
        """Bring back a failed, dead, blocked, paused or reviewed run. Raises `NotFound`, `Conflict`."""
        reply = await self._connection.request("run.resume", {"run_id": _run_id(run_id)})
        return RunHandle(self._connection, str(reply["run_id"]), str(reply["agent"]))

    async def restart(self, run_id: str) -> RunHandle:
        """A new run with the task of another, which stays as it is. Raises `NotFound`."""
        said = {"run_id": _run_id(run_id), "new_run_id": subjects.new_run_id()}
        reply = await self._connection.insist("run.restart", said)
        return RunHandle(self._connection, str(reply["run_id"]), str(reply["agent"]))

    async def count(self, action: BulkAction, *, all: bool = False, **wanted: Any) -> BulkCount:  # noqa: A002 -- the wire's word
        """How many runs `bulk` would act on, at most 100,000 are counted. `wanted` is its filter."""
        said = {"action": action, "filter": wanted, "all": all, "dry_run": True}
        reply = await self._connection.insist("run.bulk", said)
        return BulkCount(reply["matched"], reply["more"], reply["next_cursor"])

    async def bulk(
        self,
        action: BulkAction,
        *,
        all: bool = False,  # noqa: A002 -- the wire's word
        reason: str | None = None,
        name: str | None = None,
        payload: Any = None,
        id: str | None = None,  # noqa: A002 -- the wire's word
        page: int = 100,
        cursor: str | None = None,
        **wanted: Any,
    ) -> AsyncGenerator[BulkPage]:
        """`cancel`, `terminate`, `pause`, `resume`, `restart` or `signal` many runs, `page` (1 to 500) at a time.

        `wanted` says which: `agent`, `status` (one or a list), `workflow`, `version`, `session_id`, `created_after`,
        `created_before` (ISO 8601); `all=True` for every run. Runs that come later are left alone. Each page that is
        done is told, so that progress can be shown; a loop that is left early does no more. Give the `cursor` of
        `count` to act on exactly the runs that were counted. A signal has a `name` and a `payload`; each run gets it
        once, also when the whole is repeated with the same `id`.
        """
        said: dict[str, Any] = {"action": action, "filter": wanted, "all": all, "limit": page}
        if reason is not None:
            said["reason"] = reason
        if name is not None:
            said |= {"name": name, "payload": payload, "id": id or uuid4().hex}
        if cursor is None:
            cursor = (await self.count(action, all=all, **wanted)).cursor
        while cursor is not None:
            reply = await self._connection.insist("run.bulk", {**said, "cursor": cursor}, timeout=30.0)
            cursor = reply["next_cursor"]
            yield BulkPage(reply["done"], reply["skipped"], reply["failed"])

    async def fork(self, run_id: str, step: str) -> RunHandle:
        """A new run that begins with another's journal up to `step` (its path, name or seq). Raises `NotFound`."""
        said = {"run_id": _run_id(run_id), "step": step, "new_run_id": subjects.new_run_id()}
        reply = await self._connection.insist("run.fork", said)
        return RunHandle(self._connection, str(reply["run_id"]), str(reply["agent"]))

    async def sessions(self, agent: str, *, limit: int = 50, cursor: str | None = None) -> SessionPage:
        """An agent's conversations, last used first, `limit` (1 to 500) at a time."""
        said = {"agent": _checked(subjects.agent_name, agent), "limit": limit}
        if cursor is not None:
            said["cursor"] = cursor
        reply = await self._connection.insist("session.list", said)
        return SessionPage(reply["sessions"], reply.get("next_cursor"))

    async def history(self, session_id: str, *, agent: str | None = None) -> Sequence[dict[str, Any]]:
        """Every message of a conversation, oldest first: `seq`, `run_id`, `time`, `role`, `content`, ….

        `agent` may be left out while one agent alone has a session of this id. Raises `NotFound`.
        """
        said = self._session(session_id, agent)
        messages = deque[dict[str, Any]]()
        after: int | None = 0
        while after is not None:
            reply = await self._connection.insist("session.history", {**said, "after": after})
            messages += reply["history"]
            after = reply["next_after"]
        return tuple(messages)

    async def reset_session(self, session_id: str, *, agent: str | None = None) -> int:
        """Forget the messages of a conversation; how many there were. Raises `NotFound`, and `Conflict` in a turn."""
        reply = await self._connection.request("session.reset", self._session(session_id, agent))
        return int(reply["forgotten"])

    async def replicas(self, agent: str | None = None, *, wait: float = 0.5, first: bool = False) -> Sequence[Replica]:
        """The agent processes that answer within `wait` seconds; with `first`, at most one, as soon as it answers."""
        name = None if agent is None else _checked(subjects.agent_name, agent)
        return await replicas(await self._connection.nats(), name, wait=wait, first=first)

    @staticmethod
    def _session(session_id: str, agent: str | None) -> dict[str, str]:
        said = {"session_id": _checked(lambda value: subjects.run_id(value, field="session_id"), session_id)}
        return said if agent is None else {**said, "agent": _checked(subjects.agent_name, agent)}

    @staticmethod
    def _start(task: Any, workflow: str, run_id: str | None, session_id: str | None) -> dict[str, Any]:
        # An id of our own makes a start that is repeated, because its answer was lost, the same run.
        named = subjects.new_run_id() if run_id is None else _run_id(run_id)
        said = {"task": task, "workflow": workflow, "run_id": named}
        if session_id is not None:
            said |= Client._session(session_id, None)
        return said


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a start as they travel; `TypeError` for one that there is not."""
    if unknown := options.keys() - StartKeywords.__annotations__.keys():
        raise TypeError(f"start() got an unexpected keyword argument {min(unknown)!r}")
    said = {key: value.total_seconds() if isinstance(value, timedelta) else value for key, value in options.items()}
    return {key: value for key, value in said.items() if value is not None and (key, value) != ("priority", 0)}


def _run_id(value: str) -> str:
    return _checked(subjects.run_id, value)


def _checked(check: Any, value: str) -> str:
    try:
        return str(check(value))
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
