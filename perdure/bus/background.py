"""The loops that a service runs in the background: one that fails is logged and begins anew after a while."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from perdure.observe.health import Finding

FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 5.0
STEADY: Final = 30.0  # seconds after which a loop that failed counts as well again

Loop = Callable[[], Awaitable[None]]


class Background:
    """Supervised loops; `logger` is the service's."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: dict[str, str] = {}

    def spawn(self, loop: Loop, name: str) -> asyncio.Task[None]:
        """Run `loop` until it returns or `cancel` is called."""
        task = asyncio.get_running_loop().create_task(self._supervise(loop, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """Cancel all loops and wait until they have ended."""
        # More than once: a library's `wait_for` on Python 3.11 swallows a cancellation that comes as its result does.
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1)

    async def check(self) -> Finding:
        """A health check: `warning` while a loop has failed within the last 30 s."""
        if self._failing:
            return "warning", "; ".join(f"{name} failed: {text}" for name, text in sorted(self._failing.items()))
        return "ok", f"{len(self._tasks)} loops"

    async def _supervise(self, function: Loop, name: str) -> None:
        loop = asyncio.get_running_loop()
        wait = FIRST_BACKOFF
        while True:
            began = loop.time()
            try:
                await function()
            except Exception as error:
                self._failing[name] = str(error) or type(error).__name__
                self._logger.exception("a background loop failed", action="service.loop_failed", loop=name)
            else:
                return
            wait = FIRST_BACKOFF if loop.time() - began > STEADY else min(wait * 2, LONGEST_BACKOFF)
            await asyncio.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - jitter, no secret
            loop.call_later(STEADY, self._failing.pop, name, None)
