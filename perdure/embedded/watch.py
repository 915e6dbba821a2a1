"""Watches the parts of a platform and starts again what has ended by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from perdure.errors import SetupError

FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0
STEADY = 30.0  # seconds a part must have run before its next crash counts as the first
_POLL = 0.05


class Watched(Protocol):
    """A part with a process of its own."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def running(self) -> bool:
        """Whether the process is alive."""

    @property
    def exit_code(self) -> int | None:
        """How it ended."""

    async def start(self) -> None:
        """Start it and wait until it answers."""


class Watch:
    """Restarts parts with a growing delay, and says so in one line. `on_restart` is called after each."""

    def __init__(self, say: Callable[[str], None], *, on_restart: Callable[[], None]) -> None:
        self._say = say
        self._on_restart = on_restart
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, part: Watched) -> None:
        """Watch a part that runs."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._keep(part), name=f"watch {part.name}"))

    async def close(self) -> None:
        """Watch no longer: what ends now was meant to."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, part: Watched) -> None:
        delay = FIRST_DELAY
        since = time.monotonic()
        while True:
            while part.running:
                await asyncio.sleep(_POLL)
            if time.monotonic() - since > STEADY:
                delay = FIRST_DELAY
            self._say(f"{part.name} {_how(part.exit_code)}; it is started again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
            since = time.monotonic()
            try:
                await part.start()
            except (SetupError, OSError) as error:
                self._say(f"{part.name} does not start again: {error}")
                continue
            self._on_restart()
            self._say(f"{part.name} runs again (pid {part.pid})")


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was ended by signal {-exit_code}"
    return f"ended with exit code {exit_code}"
