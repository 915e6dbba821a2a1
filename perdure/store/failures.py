"""Which of Postgres's errors pass by themselves, and which say that a value cannot be stored."""

from __future__ import annotations

from typing import Final

import asyncpg

# Try again: the server is away, starting, full, failing over, or another transaction was in the way.
CONNECTION_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that is lost in the middle of asyncpg's own work
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)

_REFUSALS: Final = ("21", "22", "23", "54")  # cardinality, data, integrity, program limits


def refuses(error: BaseException) -> bool:
    """Whether the database, or asyncpg on its behalf, says that a value cannot be stored: a repeat cannot help."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")[:2] in _REFUSALS
    return isinstance(error, ValueError | OverflowError)
