"""`make bench`: what the parts under the engine do on this machine. Real servers, fsync on, one process."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable

import asyncpg
import nats
from nats.aio.msg import Msg
from rich.console import Console
from rich.table import Table

from benchmarks.own import own_settings
from perdure.embedded.platform import Platform

SECONDS = 5.0
CALLERS = (1, 16, 64, 256)
INSERT = "INSERT INTO bench (n) VALUES ($1)"


async def rate(act: Callable[[int], Awaitable[object]], callers: int) -> tuple[float, float, float]:
    """(calls a second, p50 and p99 in milliseconds) of `callers` callers over `SECONDS`."""
    took: list[float] = []
    end = time.perf_counter() + SECONDS

    async def call() -> None:
        while (begin := time.perf_counter()) < end:
            await act(len(took))
            took.append(time.perf_counter() - begin)

    await asyncio.gather(*(call() for _ in range(callers)))
    took.sort()
    return len(took) / SECONDS, took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000


async def echo(msg: Msg) -> None:
    await msg.respond(msg.data)


async def main() -> None:
    table = Table("what", "callers", "a second", "p50 ms", "p99 ms", box=None)
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as home:
        settings = own_settings(home)
        async with Platform(settings, processes=(), free_ports=True, offline=False) as platform:
            nc = await nats.connect(platform.urls.nats_url)
            pool = await asyncpg.create_pool(platform.urls.database_url, min_size=8, max_size=64)
            await pool.execute("CREATE TABLE bench (n int)")
            await nc.subscribe("bench.echo", cb=echo)
            works: dict[str, Callable[[int], Awaitable[object]]] = {
                "NATS request and reply": lambda _: nc.request("bench.echo", b"x", timeout=10),
                "Postgres single-row INSERT": lambda n: pool.execute(INSERT, n),
            }
            for name, act in works.items():
                for callers in CALLERS:
                    a_second, p50, p99 = await rate(act, callers)
                    table.add_row(name, str(callers), f"{a_second:,.0f}", f"{p50:.2f}", f"{p99:.2f}")
            await nc.close()
            pool.terminate()
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
