"""What people do to runs: cancel, terminate, pause, resume, restart, fork."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
from nats.aio.client import Client

from perdure.engine import queues, runs
from perdure.engine.codec import encode
from perdure.engine.points import reach
from perdure.engine.rows import TERMINAL
from perdure.engine.stored import copy_values, error_spot, reason_spot
from perdure.errors import ApiError, Conflict, NotFound
from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries
from perdure.store.vault import vault_of

_SQL = load_queries("control.sql")
_RUNS = load_queries("runs.sql")


async def cancel(pool: Pool, nats: Client, run_id: str, reason: str) -> asyncpg.Record:
    """End a run by its own code, which may tidy up, and its living children. Raises `NotFound`.

    One that has ended stays as it is; one that has not begun ends at once.
    """
    reach("cancel.before", run_id)
    error = encode({"type": "Cancelled", "message": reason}, what="reason")
    record = await pool.fetchrow(_SQL["cancel"], run_id, *await _sealed(pool, run_id, reason, error))
    reach("cancel.after", run_id)
    if record is None:
        raise NotFound(f"there is no run {run_id!r} to cancel", run_id=run_id)
    if record["way"] == "ended":
        await _ended(pool, nats, run_id, record, error)
    elif record["way"] == "woken":
        runs.wake(nats, run_id, record["agent_name"])
    elif record["way"] == "asked":
        runs.nudge(nats, record["process_id"], run_id)
    await _children(pool, run_id, lambda child: cancel(pool, nats, child, f"its parent {run_id} was cancelled"))
    return record


async def terminate(pool: Pool, nats: Client, run_id: str, reason: str) -> asyncpg.Record:
    """End a run and its living children at once, without running any code of theirs. Raises `NotFound`."""
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchrow(_SQL["lock_run"], run_id) is None:
            raise NotFound(f"there is no run {run_id!r} to terminate", run_id=run_id)
        said: dict[str, Any] = {"type": "Terminated", "message": reason}
        if left := [row["name"] for row in await connection.fetch(_SQL["not_undone"], run_id)]:
            said["not_undone"] = left
        error = encode(said, what="reason")
        record = await connection.fetchrow(_SQL["terminate"], run_id, *await _sealed(connection, run_id, reason, error))
    if record is None:
        raise NotFound(f"there is no run {run_id!r} to terminate", run_id=run_id)
    if record["ended"]:
        await _ended(pool, nats, run_id, record, error)
        runs.nudge(nats, record["process_id"], run_id)  # its steps are stopped
    await _children(pool, run_id, lambda child: terminate(pool, nats, child, f"its parent {run_id} was terminated"))
    return record


async def _sealed(database: Pool | PooledConnection, run_id: str, reason: str, error: str) -> tuple[str, str]:
    """A reason and the error that it makes, as their columns hold them."""
    vault, spots = vault_of(database), (reason_spot(run_id), error_spot(run_id))
    await vault.ready(spots)
    return vault.seal(reason, spots[0]), vault.seal(error, spots[1])


async def _ended(pool: Pool, nats: Client, run_id: str, record: asyncpg.Record, error: str) -> None:
    runs.tell_end(nats, run_id, record["agent_name"], "cancelled", record["end_seq"], error, vault_of(pool))
    await runs.tell_parents(pool, nats, [run_id])


async def _children(pool: Pool, run_id: str, end: Callable[[str], Awaitable[object]]) -> None:
    for child in await pool.fetch(_SQL["live_children"], [run_id]):
        await end(child["run_id"])


async def cancel_child(pool: Pool, nats: Client, parent: str, child: str) -> None:
    """Ask a child to end, because its parent waits no longer. A run that somebody else started goes on."""
    record = await pool.fetchrow(_RUNS["get"], child)
    if record is not None and record["parent_run_id"] == parent and record["status"] not in TERMINAL:
        # A cancelled parent leaves its wait before the canceller comes to its children: whoever is first says the same.
        cancelled = await pool.fetchval(_SQL["cancel_asked"], parent)
        await cancel(pool, nats, child, f"its parent {parent} {'was cancelled' if cancelled else 'waits no longer'}")


async def signal(
    pool: Pool, nats: Client, run_id: str, name: str, payload: Any, signal_id: str | None
) -> asyncpg.Record:
    """Send a run a signal, and wake it or tell its process. Raises `NotFound`, `Conflict` for one that has ended."""
    record = await runs.send_signal(pool, run_id, name, payload, signal_id)
    _signalled(nats, record)
    return record


async def signal_many(
    pool: Pool, nats: Client, run_ids: Sequence[str], name: str, payload: Any, signal_id: str | None
) -> list[ApiError | None]:
    """Send several runs one signal, in one commit, and wake them or tell their processes; why one did not take it."""
    placed = await runs.send_signals(pool, run_ids, name, payload, signal_id)
    errors: list[ApiError | None] = []
    for run_id in run_ids:
        record = placed[run_id]
        errors.append(record if isinstance(record, ApiError) else None)
        if not isinstance(record, ApiError):
            _signalled(nats, record)
    return errors


def _signalled(nats: Client, record: asyncpg.Record) -> None:
    if record["woken"]:
        runs.wake(nats, record["run_id"], record["agent_name"])
    elif record["status"] == "running":
        runs.nudge(nats, record["process_id"], record["run_id"])


async def pause(pool: Pool, nats: Client, run_id: str) -> asyncpg.Record:
    """Have a run begin nothing new: it is `paused` at once, or when the steps under way are over.

    Its timers, signals and children stay. Raises `NotFound`, and `Conflict` for a run that has ended, is stopped, or is
    being cancelled.
    """
    record = await pool.fetchrow(_SQL["pause"], run_id)
    if record is None:
        raise NotFound(f"there is no run {run_id!r} to pause", run_id=run_id)
    if record["way"] is None:
        said = "is being cancelled" if record["ending"] and record["status"] not in TERMINAL else record["status"]
        raise Conflict(
            f"run {run_id} {said if said.startswith('is ') else f'is {said}'}; "
            "only pending, running and waiting runs are paused",
            run_id=run_id,
        )
    if record["way"] == "paused":
        runs.tell(nats, run_id, record["agent_name"], "run.paused", record["last_seq"])
    elif record["way"] == "asked":
        runs.nudge(nats, record["process_id"], run_id)
    return record


async def resume(pool: Pool, nats: Client, run_id: str) -> asyncpg.Record:
    """Bring a failed, dead, blocked, paused or reviewed run back. Raises `NotFound` or `Conflict`."""
    reach("resume.before", run_id)
    async with pool.acquire() as connection, connection.transaction():
        place = await connection.fetchrow(_SQL["lock_run"], run_id)
        if place is None:
            raise NotFound(f"there is no run {run_id!r} to resume", run_id=run_id)
        await _hold_session(connection, place)  # it may become the session's last turn
        record = await connection.fetchrow(_SQL["resume"], run_id)
    reach("resume.after", run_id)
    if record is not None and record["undone"]:
        raise Conflict(
            f"what run {run_id} did was undone, so it has nothing to go on with; run.restart begins it anew",
            run_id=run_id,
        )
    if record is None or not (record["woken"] or record["continued"]):
        status = "gone" if record is None else record["status"]
        raise Conflict(
            f"run {run_id} is {status}; only failed, dead, blocked, paused or needs_review runs resume",
            run_id=run_id,
        )
    if record["woken"]:
        runs.wake(nats, run_id, record["agent_name"])
    return record


async def restart(pool: Pool, nats: Client, run_id: str, new_id: str) -> asyncpg.Record:
    """A new run with the task of another, which stays as it is. The same `new_id` again is the same run.

    Raises `NotFound`, and `Conflict` when `new_id` is another run's.
    """
    async with pool.acquire() as connection, connection.transaction():
        place = await connection.fetchrow(_SQL["lock_run"], run_id)
        if place is None:
            raise NotFound(f"there is no run {run_id!r} to restart", run_id=run_id)
        await _hold_session(connection, place)
        record = await connection.fetchrow(_SQL["restart"], run_id, new_id)
        if record is None:
            await _check_origin(connection, new_id, run_id, "restart")
            return place
        await copy_values(connection, run_id, new_id)
        await queues.place(connection, [new_id], own=False)
    runs.wake(nats, new_id, record["agent_name"])
    return record


async def fork(pool: Pool, nats: Client, run_id: str, step: str, new_id: str) -> asyncpg.Record:
    """A new run with the journal of another up to (not with) `step`: its name, seq or path (a bare number is a seq).

    Raises `NotFound` for the run or the step and `Conflict` when `new_id` is another run's.
    """
    reach("fork.before", run_id)
    async with pool.acquire() as connection, connection.transaction():
        place = await connection.fetchrow(_SQL["lock_run"], run_id)
        if place is None:
            raise NotFound(f"there is no run {run_id!r} to fork", run_id=run_id)
        seq = await connection.fetchval(_SQL["step_seq"], run_id, step)
        if seq is None:
            raise NotFound(
                f"run {run_id} has no step {step!r}; give a path, a name or a seq of `run.get`", run_id=run_id
            )
        await _hold_session(connection, place)
        record = await connection.fetchrow(_SQL["fork"], run_id, new_id, seq)
        if record is None:
            await _check_origin(connection, new_id, run_id, "fork")
            return place
        await copy_values(connection, run_id, new_id)
        await queues.place(connection, [new_id], own=False)
    reach("fork.after", run_id)
    runs.wake(nats, new_id, record["agent_name"])
    return record


async def _hold_session(connection: PooledConnection, place: asyncpg.Record) -> None:
    """Within a session the order of turns is the order of commits: a turn that is added waits for others."""
    if place["session_id"] is not None:
        await connection.execute(_RUNS["lock_sessions"], [f"{place['agent_name']}/{place['session_id']}"])


async def _check_origin(connection: PooledConnection, new_id: str, origin: str, kind: str) -> None:
    found = await connection.fetchrow(_SQL["origin"], new_id)
    if found is None or (found["origin_run_id"], found["origin_kind"]) != (origin, kind):
        raise Conflict(f"there is a run {new_id!r} already, and it is no {kind} of {origin}", run_id=new_id)
