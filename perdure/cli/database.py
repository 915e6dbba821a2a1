"""What commands share that work on the platform's database rather than through its services."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from perdure.cli.console import fail, log_warnings, run
from perdure.embedded.locate import locate
from perdure.errors import InvalidRequest
from perdure.settings import Settings, load_settings
from perdure.store.audit import acting_pool
from perdure.store.postgres import Pool, create_pool

T = TypeVar("T")


def working(name: str, work: Callable[[Pool, Settings], Awaitable[T]]) -> T:
    """Do `work` on the database of the platform, as `name` of its connections.

    Ends the command with exit code 1 for an error, 2 for an argument that cannot be, 130 after Ctrl-C.
    """
    settings = load_settings()
    log_warnings(settings)

    async def connected() -> T:
        found = await asyncio.to_thread(locate, settings)
        pool = await create_pool(found, name, size=2)
        try:
            return await work(acting_pool(pool), found)
        except InvalidRequest as error:
            fail(error, code=2)
        finally:
            await pool.close()

    return run(connected())
