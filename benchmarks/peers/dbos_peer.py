"""DBOS at workload A: `python dbos_peer.py STEPS RUNS CALLERS`, with DATABASE_URL set; prints one JSON line."""

from __future__ import annotations

import asyncio
import os
import sys

from dbos import DBOS
from timing import timed

steps, runs, callers = (int(each) for each in sys.argv[1:4])
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["DATABASE_URL"],
        "run_admin_server": False,
        "log_level": "ERROR",
    }
)


@DBOS.step()
async def noop(number: int) -> int:
    """Nothing."""
    return number


@DBOS.workflow()
async def workflow(count: int) -> int:
    """The steps in a row."""
    for number in range(count):
        await noop(number)
    return count


async def one(_: int) -> None:
    """A run from its start to its result."""
    handle = await DBOS.start_workflow_async(workflow, steps)
    await handle.get_result()


async def main() -> None:
    """Warm up, then measure."""
    DBOS.launch()
    await one(0)
    await timed(one, steps, runs, callers)
    DBOS.destroy()


asyncio.run(main())
