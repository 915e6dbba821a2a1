"""What commands share that work on the platform's database rather than through its services."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from perdure.cli.console import log_warnings, run
from perdure.embedded.locate import locate
from perdure.settings import Settings, load_settings
from perdure.store.audit import acting_pool
from perdure.store.postgres import Pool, create_pool, schema_needed

T = TypeVar("T")


def working(name: str, work: Callable[[Pool, Settings], Awaitable[T]]) -> T:
    """Do `work` on the database of the platform, as `name` of its connections; errors are those of `run`."""
    settings = load_settings()
    log_warnings(settings)

    async def connected() -> T:
        found = await asyncio.to_thread(locate, settings)
        pool = await create_pool(found, name, size=2)
        try:
            with schema_needed():
                return await work(acting_pool(pool), found)
        finally:
            await pool.close()

    return run(connected())
