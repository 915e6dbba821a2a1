"""Connections to Postgres, with the deadlines that asyncpg does not have of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Self, TypeAlias, TypeVar

import asyncpg

from perdure.errors import SetupError
from perdure.settings import Settings
from perdure.store.sealing import vault_for
from perdure.tls import client_context

F = TypeVar("F", bound=Callable[..., Any])
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


def _server_settings(settings: Settings, role: str) -> dict[str, str]:
    return {
        "application_name": f"perdure {role}"[:63],
        "statement_timeout": f"{int(settings.statement_timeout * 1000)}ms",
        "lock_timeout": f"{int(settings.statement_timeout * 500)}ms",
        "idle_in_transaction_session_timeout": "60s",
        "timezone": "UTC",
    }


def database_of(settings: Settings) -> str:
    """The URL of the database that counts: with a namespace, `perdure` becomes `perdure_staging`.

    Raises `SetupError` when there is a namespace and DATABASE_URL names no database.
    """
    if not settings.namespace:
        return settings.database_url
    address, question, options = settings.database_url.partition("?")
    if not address.partition("://")[2].partition("/")[2]:
        raise SetupError(
            "DATABASE_URL names no database, and PERDURE_NAMESPACE needs its name: "
            "write postgresql://user@host:5432/perdure"
        )
    return f"{address}_{settings.namespace.replace('-', '_')}{question}{options}"


async def create_pool(settings: Settings, role: str, *, size: int | None = None, lazy: bool = False) -> Pool:
    """A pool for the queries of one process. `role` is shown in `pg_stat_activity`; `lazy` connects on first use.

    Raises `SetupError` when the database cannot be reached, naming the address (never the password).
    """
    vault = await vault_for(settings)
    try:
        return await asyncpg.create_pool(
            database_of(settings),
            connection_class=type("Connection", (asyncpg.Connection,), {"vault": vault}),  # see `vault_of`
            min_size=0 if lazy else 1,
            max_size=size or settings.pool_size,
            command_timeout=settings.statement_timeout + 5,
            server_settings=_server_settings(settings, role),
            reset=_keep,
            **await _tls(settings),
        )
    except (OSError, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise SetupError(unreachable(settings, error)) from error


async def _keep(_connection: Connection) -> None:
    """Nothing of ours changes a session, so its reset (a round trip a release) is left to those who let users in."""


# Postgres plans a statement about a list anew each time, as long as it expects more of a list that it does not know:
# half of what a small one costs.
_PLAN_ONCE: Final = "SET plan_cache_mode = force_generic_plan"
_FORGET_PLANS: Final = "DISCARD PLANS"


class Kept:
    """One connection of a pool for one user, who keeps it between its uses: taking it from the pool and giving it back
    each time costs two switches of tasks. A use that fails gives it back, `release` does so at the end. A pool of fewer
    than four has none to spare: there each use gives it back.

    On a connection that is kept a statement is planned once in `PLANNED_FOR` uses, without its parameters: it is for
    those that find their rows by keys. A plan that was made of an empty table is soon forgotten.
    """

    PLANNED_FOR = 250

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._connection: PooledConnection | None = None
        self._keeps = pool.get_max_size() > 3
        self._uses = 0

    def acquire(self) -> Self:
        """The connection, for one `async with`."""
        return self

    async def __aenter__(self) -> PooledConnection:
        if self._connection is None or _lost(self._connection):
            await self.release()
            connection = self._connection = await self._pool.acquire()
            if self._keeps:
                await connection.execute(_PLAN_ONCE)
        self._uses += 1
        if self._keeps and self._uses % self.PLANNED_FOR == 0:
            await self._connection.execute(_FORGET_PLANS)
        return self._connection

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None or not self._keeps:
            await self.release()

    async def release(self) -> None:
        """Give it back; the next use takes another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it is gone, or the pool
                try:
                    if self._keeps:
                        await _undo_session(connection)
                finally:
                    await self._pool.release(connection)


class Warm:
    """Connections of a pool that whoever has used one leaves for the next: giving one back costs a task and three turns
    of the loop each time. At most `SPARE` stay when nobody uses them, and none while more than `most` are out. A use
    that fails gives its connection back.
    """

    SPARE = 2

    def __init__(self, pool: Pool, most: int) -> None:
        self._pool = pool
        self._most = most if pool.get_max_size() > 3 else 0
        self._left: list[PooledConnection] = []
        self._out = 0  # those that are used, and those that are left
        self._closed = False

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[PooledConnection]:
        """A connection for one use."""
        connection = await self._take()
        try:
            yield connection
        except BaseException:  # a cancellation, too: nobody knows in what state it is
            await self._give_back(connection)
            raise
        if self._closed or self._out > self._most or len(self._left) >= self.SPARE:
            await self._give_back(connection)
        else:
            self._left.append(connection)

    async def _take(self) -> PooledConnection:
        while self._left:
            connection = self._left.pop()
            if not _lost(connection):
                return connection
            await self._give_back(connection)
        self._out += 1
        try:
            return await self._pool.acquire()
        except BaseException:  # a cancellation, too: none was taken
            self._out -= 1
            raise

    async def _give_back(self, connection: PooledConnection) -> None:
        self._out -= 1
        await self._pool.release(connection)

    async def release(self) -> None:
        """Give back what is left, and from now on leave nothing."""
        self._closed = True
        while self._left:
            await self._give_back(self._left.pop())


def _lost(connection: PooledConnection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True  # the pool took it back in the moment when it was lost


def keeps_session(function: F) -> F:
    """Mark a function of ours that leaves the session as it is, so that `own_session` spares the round trip."""
    function.__perdure_keeps_session__ = True  # type: ignore[attr-defined]
    return function


@asynccontextmanager
async def own_session(connection: PooledConnection, function: Callable[..., object]) -> AsyncIterator[None]:
    """Whatever `function` does to the session (SET, LISTEN, an advisory lock) is undone before the next user of it."""
    if getattr(function, "__perdure_keeps_session__", False):
        yield
        return
    try:
        yield
    finally:
        await _undo_session(connection)


async def _undo_session(connection: PooledConnection) -> None:
    """Undo whatever was set in the session, or end it: nobody gets it then."""
    try:
        await connection.reset(timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        connection.terminate()


async def connect_direct(settings: Settings, role: str) -> Connection:
    """One connection outside any pool, for locks and LISTEN, which a pool would hand to someone else.

    Raises what asyncpg raises: whoever holds such a connection also holds the loop that gets a new one.
    """
    return await asyncpg.connect(
        database_of(settings),
        timeout=10,
        command_timeout=settings.statement_timeout,
        server_settings=_server_settings(settings, role),
        **await _tls(settings),
    )


async def _tls(settings: Settings) -> dict[str, Any]:
    """The argument for TLS, if it is on: then nothing is sent without it, whatever DATABASE_URL says."""
    context = await asyncio.to_thread(client_context, settings, "postgres")  # reads files
    return {} if context is None else {"ssl": context}


@contextmanager
def schema_needed() -> Iterator[None]:
    """Raises `SetupError` that says what to do when the tables that the statements within need are not there."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        raise SetupError(f"the database lacks tables of this version ({error}); run `perdure migrate`") from None


def unreachable(settings: Settings, error: BaseException) -> str:
    """The sentence for a database that does not answer, without its password."""
    url = database_of(settings)
    where = url.rpartition("@")[2] or url
    advice = "Check DATABASE_URL, or start the platform with `perdure up`."
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        advice = "Make it with `createdb`, or check DATABASE_URL."
        if settings.namespace:
            advice = f"`perdure migrate` makes the database of the namespace {settings.namespace}."
    return f"Postgres at {where} cannot be used: {str(error) or type(error).__name__}. {advice}"
