"""Lookups by key: all that wait are one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
import structlog

from perdure.errors import Unavailable
from perdure.store.failures import CONNECTION_ERRORS
from perdure.store.postgres import Kept, Pool

MOST: Final = 1000  # keys of a statement

log = structlog.get_logger(__name__)


class Together:
    """Looks rows up by their first column, with a query whose one parameter is the list of keys.

    Nothing is kept: whoever asks is answered by a statement that begins after that. None as a key is not sent; it asks
    for the row whose first column is NULL.
    """

    def __init__(self, pool: Pool, query: str, *, what: str) -> None:
        self._kept = Kept(pool)
        self._query = query
        self._what = what
        self._waiting: dict[str | None, list[asyncio.Future[asyncpg.Record | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def ask(self, key: str | None) -> asyncpg.Record | None:
        """The row of a key, None when there is none. Raises `Unavailable` when Postgres cannot be asked."""
        answer: asyncio.Future[asyncpg.Record | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(answer)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._answer())
        return await answer

    async def stop(self) -> None:
        """End the looking; who waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._kept.release()

    async def _answer(self) -> None:
        # whoever asks while a statement is under way is answered by the next one, which sees what has changed by then
        while self._waiting:
            asked = list(self._waiting)[:MOST]
            waiting = {key: self._waiting.pop(key) for key in asked}
            try:
                found = await self._look(asked)
            except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
                log.warning("a lookup failed", action="lookup.away", what=self._what, error=type(error).__name__)
                for answer in _open(waiting):
                    answer.set_exception(
                        Unavailable(f"{self._what} cannot be looked up now, Postgres is away; ask again")
                    )
            except asyncio.CancelledError:
                for answer in _open(waiting):
                    answer.cancel()
                raise
            else:
                for key, several in waiting.items():
                    for answer in _open({key: several}):
                        answer.set_result(found.get(key))

    async def _look(self, keys: list[str | None]) -> dict[Any, asyncpg.Record]:
        async with self._kept.acquire() as connection:
            rows = await connection.fetch(self._query, [key for key in keys if key is not None])
        return {row[0]: row for row in rows}


def _open(
    waiting: Mapping[str | None, list[asyncio.Future[asyncpg.Record | None]]],
) -> list[asyncio.Future[asyncpg.Record | None]]:
    """Those who still wait."""
    return [answer for several in waiting.values() for answer in several if not answer.done()]
