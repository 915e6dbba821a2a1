"""What Postgres says when it cannot do what was asked, in the words of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from perdure.errors import InvalidRequest, TooLarge, Unavailable
from perdure.store.queries import load_queries

SQL: Final = load_queries("config.sql")

# The server is away, restarting, or too busy: the same request may work in a moment.
GONE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection may say that is lost in the middle of an operation
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
)


@contextmanager
def told_as_api_errors() -> Iterator[None]:
    """Turn what Postgres refuses into `InvalidRequest`, and its absence into `Unavailable`."""
    try:
        yield
    except asyncpg.CheckViolationError as error:
        raise InvalidRequest(f"{error}. {error.hint or ''}".strip()) from None
    except asyncpg.ProgramLimitExceededError as error:
        raise TooLarge(f"Postgres cannot store this: {error}") from None
    except GONE as error:
        said = str(error) or type(error).__name__
        raise Unavailable(f"Postgres cannot be used right now: {said}. Read again to see what was stored.") from error
