"""Changes through `config.set` and `config.rollback`: each is one transaction, and so one revision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import asyncpg

from config_manager.database import SQL, told_as_api_errors
from perdure.errors import Conflict, NotFound, Unavailable
from perdure.store.postgres import Connection, Pool

ATTEMPTS: Final = 5  # of a transaction that met another one in the opposite order

Work = Callable[[Connection], Awaitable[None]]
Row = tuple[str, bool]  # value, is_active


async def put(
    pool: Pool,
    layer: str,
    puts: Mapping[str, str],
    deletes: Collection[str],
    *,
    compare: Collection[str],
    expected: int | None,
    changed_by: str,
) -> int | None:
    """Write rows of one layer, and return the new revision: None when everything stood there already.

    Raises `Conflict` when one of the layers `compare` has changed since revision `expected`, `InvalidRequest` for what
    the table's own checks refuse, `Unavailable` when Postgres is away (then the change may or may not be stored).
    """

    async def work(connection: Connection) -> None:
        await write(connection, layer, {key: (value, True) for key, value in puts.items()}, deletes)

    return await commit(pool, work, compare=compare, expected=expected, changed_by=changed_by)


async def roll_back(
    pool: Pool,
    layer: str,
    revision: int,
    *,
    check: Callable[[Mapping[str, str]], object],
    compare: Collection[str],
    expected: int | None,
    changed_by: str,
) -> int | None:
    """Make one layer what it was at `revision`; the return value and the errors are those of `put`.

    `check` is given the values that come back, and may refuse them. Raises `NotFound` when there is no such revision.
    """

    async def work(connection: Connection) -> None:
        newest = await connection.fetchval(SQL["revision"])
        check_known(revision, newest=newest, pruned_to=await connection.fetchval(SQL["pruned_to"]))
        then = await connection.fetch(SQL["layer_at"], layer, revision)
        now = await connection.fetch(SQL["layer_now"], layer)
        wanted: dict[str, Row] = {
            row["config_key"]: (row["new_value"], row["new_active"]) for row in then if row["new_value"] is not None
        }
        standing: dict[str, Row] = {row["config_key"]: (row["config_value"], row["is_active"]) for row in now}
        check({key: value for key, (value, active) in wanted.items() if active})
        changed = {key: row for key, row in wanted.items() if standing.get(key) != row}
        await write(connection, layer, changed, standing.keys() - wanted.keys())

    return await commit(pool, work, compare=compare, expected=expected, changed_by=changed_by)


def check_known(revision: int, *, newest: int, pruned_to: int) -> None:
    """Raise `NotFound` for a revision of the future, and for one whose history was pruned."""
    if revision > newest:
        raise NotFound(f"there is no revision {revision}: the newest is {newest}")
    if revision < pruned_to:
        raise NotFound(
            f"revision {revision} was pruned: history goes back to revision {pruned_to} "
            "(PERDURE_CONFIG_HISTORY_DAYS and PERDURE_CONFIG_HISTORY_REVISIONS say how far)",
            oldest=pruned_to,
        )


async def write(connection: Connection, layer: str, puts: Mapping[str, Row], deletes: Collection[str]) -> None:
    """Put and delete rows of one layer in the transaction at hand."""
    if puts:
        values, active = zip(*puts.values(), strict=True)
        await connection.execute(SQL["put_rows"], layer, list(puts), list(values), list(active))
    if deletes:
        await connection.execute(SQL["delete_rows"], layer, list(deletes))


async def commit(
    pool: Pool, work: Work, *, changed_by: str, compare: Collection[str] = (), expected: int | None = None
) -> int | None:
    """Do `work` in one transaction, again when others were in its way, and return the revision it took.

    Raises `Conflict` when one of the layers `compare` has changed since revision `expected`, `Unavailable` when
    Postgres is away or others were in the way each time.
    """
    for _ in range(ATTEMPTS):
        try:
            with told_as_api_errors():
                async with pool.acquire() as taken, taken.transaction():
                    connection: Connection = taken  # type: ignore[assignment]  # a proxy of one
                    await connection.execute(SQL["say_who"], changed_by)
                    await work(connection)
                    if expected is not None:
                        await connection.fetchval(SQL["lock_counter"])
                        newest = await connection.fetchval(SQL["head_of_layers"], list(compare))
                        if newest > expected:
                            raise Conflict(
                                f"the configuration has changed since revision {expected}, "
                                f"it is at {newest} now: read it again and repeat the change",
                                revision=newest,
                            )
                    await connection.execute(SQL["fire_triggers"])
                    revision: int | None = await connection.fetchval(SQL["own_revision"])
                return revision
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            continue
    raise Unavailable("other writers were in the way at each attempt; nothing was stored, ask again")
