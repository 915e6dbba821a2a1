"""What the peers' programs share: so many runs, so many at a time."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable


async def timed(one: Callable[[int], Awaitable[None]], steps: int, runs: int, callers: int) -> None:
    """Run `one` `runs` times, `callers` at a time; print steps a second, p50, p99 (ms) and CPU a step (us) as JSON."""
    took: list[float] = []
    left = runs

    async def call() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await one(left)
            took.append((time.perf_counter() - began) * 1000)

    cpu = sum(os.times()[:2])
    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - began
    cpu = sum(os.times()[:2]) - cpu
    took.sort()
    said = {
        "steps_per_second": runs * steps / seconds,
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
        "cpu_per_step": cpu / (runs * steps) * 1e6,
    }
    print(json.dumps(said), flush=True)
