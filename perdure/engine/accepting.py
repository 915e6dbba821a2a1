"""The statements that make rows of starts: those that say only a task, and those with options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from perdure.engine.rows import Start
from perdure.engine.start_options import StartOptions
from perdure.engine.stored import task_spot
from perdure.errors import Conflict
from perdure.store.postgres import Pool, PooledConnection
from perdure.store.queries import load_queries
from perdure.store.vault import vault_of

_RUNS = load_queries("runs.sql")
_SQL = load_queries("queues.sql")
_ENDS = load_queries("ends.sql")
_PLAIN = StartOptions()
T = TypeVar("T")


async def insert_starts(connection: PooledConnection, starts: Sequence[Start]) -> set[str]:
    """Insert runs, each once; the ids of those that are new. With options or callbacks, call it in a transaction.

    A start with a `holder` that got its slot says in `held` what that process is to be told.
    """
    stored = list(zip(starts, await _stored_tasks(connection, starts), strict=True))
    plain = [(start, task) for start, task in stored if start.options is None]
    made: set[str] = set()
    if plain:
        records = await connection.fetch(_RUNS["accept"], *_columns(plain), *_holders([start for start, _ in plain]))
        made = {record["run_id"] for record in records}
        if any(start.holder is not None for start, _ in plain):
            _hold(plain, {record["run_id"]: record["started_at"] for record in records})
    if len(plain) < len(starts):
        placed = [(start, task) for start, task in stored if start.options is not None]
        records = await connection.fetch(
            _SQL["accept_queued"], *_columns(placed), *_places([start for start, _ in placed])
        )
        made |= {record["run_id"] for record in records}
    if calling := [start for start in starts if start.callback is not None and start.run_id in made]:
        told = [start.run_id for start in calling], [start.callback for start in calling]
        await connection.execute(_ENDS["set_callbacks"], *told)
    return made


async def accept_keyed(pool: Pool, start: Start, now: datetime) -> str:
    """Accept a start with a key, as `take_key` does."""
    async with pool.acquire() as connection, connection.transaction():
        return await take_key(connection, start, now)


async def take_key(connection: PooledConnection, start: Start, now: datetime) -> str:
    """In a transaction, accept a start with a key: the run's status; `start.run_id` is then the run it has come to be.

    A key of deduplication leads to the run that holds it; one of debouncing gives its task to the run that waits. Keys
    are an agent's and a workflow's own. Raises `Conflict` when the run id is that of another task.
    """
    options = start.options or _PLAIN
    if start.session_id is not None:
        await connection.execute(_RUNS["lock_sessions"], [f"{start.agent_name}/{start.session_id}"])
    if options.dedup_key is not None:
        key = (start.agent_name, f"{start.workflow}\n{options.dedup_key}")
        until = None if options.dedup_window is None else now + timedelta(seconds=options.dedup_window)
        await connection.execute(_SQL["lock_key"], key[0], "dedup", key[1], start.run_id, until, now)
        await connection.execute(_SQL["take_dedup_key"], *key, start.run_id, until, now)
        holder = await connection.fetchval(_SQL["holder"], *key)
        if holder != start.run_id:
            start.run_id = holder
            return "accepted"
    else:
        key = (start.agent_name, f"{start.workflow}\n{options.debounce_key}")
        begin_at = now + timedelta(seconds=options.debounce)
        last = now + timedelta(seconds=options.debounce_max)
        await connection.execute(_SQL["lock_key"], key[0], "debounce", key[1], start.run_id, last, now)
        waiting = await connection.fetchval(_SQL["debounce_holder"], *key)
        (task,) = await vault_of(connection).put(connection, [(start.task, task_spot(waiting))])
        holder = await connection.fetchval(_SQL["debounce"], *key, task, start.task_hash, begin_at)
        if holder is not None:
            start.run_id = holder
            return "accepted"
        await connection.execute(_SQL["hold_debounce_key"], *key, start.run_id, last)
        start.options = options.at(min(begin_at, last))
    if not await insert_starts(connection, [start]):
        [there] = await connection.fetch(_RUNS["accepted_before"], [start.run_id])
        if there["task_hash"] != start.task_hash:
            raise Conflict(f"there is a run {start.run_id!r} with another task, agent or session", run_id=start.run_id)
        return str(there["status"])
    return "waiting" if start.options is not None and start.options.begin_at is not None else "pending"


async def _stored_tasks(connection: PooledConnection, starts: Sequence[Start]) -> list[str | None]:
    """The tasks of `starts` as their column holds them; large ones are put."""
    vault, texts = vault_of(connection), [start.task for start in starts]
    if vault.plain(texts):
        return list(texts)
    return await vault.put(connection, [(start.task, task_spot(start.run_id)) for start in starts])


def _columns(stored: Sequence[tuple[Start, str | None]]) -> tuple[list[Any], ...]:
    starts = [start for start, _ in stored]
    return (
        [start.run_id for start in starts],
        [start.agent_name for start in starts],
        [start.workflow for start in starts],
        said([start.session_id for start in starts]),
        [task for _, task in stored],
        [start.task_hash for start in starts],
        said([start.parent_run_id for start in starts]),
        said([start.parent_path for start in starts]),
        said([start.trace for start in starts]),
    )


def _holders(starts: Sequence[Start]) -> tuple[list[Any], ...]:
    holders = [start.holder for start in starts]
    return (
        said([holder and holder.process_id for holder in holders]),
        said([holder and holder.version for holder in holders]),
        said([holder and holder.source_hash for holder in holders]),
        said([holder and holder.config_hash for holder in holders]),
        said([holder and holder.config_revision for holder in holders]),
    )


def _hold(stored: Sequence[tuple[Start, str | None]], began: Mapping[str, datetime | None]) -> None:
    for start, task in stored:
        started_at = began.get(start.run_id)
        if start.holder is not None and started_at is not None:
            version = start.holder.version
            start.held = (start.run_id, start.workflow, version, start.session_id, start.trace, task)
            start.held_since = started_at


def said(column: list[T]) -> list[T]:
    """A column of a statement that unnests it beside others, which fill it up with NULL: left out if it says nothing.

    asyncpg looks at each value of an array by itself, and so does Postgres.
    """
    return column if any(value is not None for value in column) else []


def _places(starts: Sequence[Start]) -> tuple[list[Any], ...]:
    options = [start.options or _PLAIN for start in starts]
    queues = [each.queue_of(start.agent_name) for start, each in zip(starts, options, strict=True)]
    return (
        queues,
        [each.priority for each in options],
        [None if queue is None else each.fair_key or "" for queue, each in zip(queues, options, strict=True)],
        [each.begin_at for each in options],
    )
