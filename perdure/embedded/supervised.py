"""One child process of the platform, a server or a process of ours: how it is started, proved ready, and ended."""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from perdure.embedded.child import Child, begin_log, last_words, port_was_taken
from perdure.embedded.ports import HOST, free_port, is_free
from perdure.errors import SetupError

_POLL = 0.01
_PORT_TRIES = 10


class Supervised(ABC):
    """A child process. `start` returns when it answers, and that it is ours is proved, not assumed.

    `port` on loopback is tried first, where the child has one; when another program has it, a free one is taken and
    `note` says so. The port stays the same over restarts. `wanted` is the port that a user expects, None for any.
    """

    name: str
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: float = 30.0
    other_tries: ClassVar[int] = 1
    """Starts that may fail for another reason than its port: what may pass by itself deserves more than one."""

    def __init__(self, log_file: Path, *, port: int | None, wanted: int | None) -> None:
        self.log_file = log_file
        self.port = port
        self._wanted = wanted
        self._settled = False  # it has answered on this port, which clients know now
        self._child: Child | None = None
        self._log_begins = 0

    @abstractmethod
    def spawn(self) -> Child:
        """Start the program, on `port`."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether it answers now; called until it does. One of someone else on the port is a no."""

    async def prepare(self) -> None:  # noqa: B027 -- most have nothing to prepare
        """What comes before a start."""

    @property
    def pid(self) -> int:
        """The process id. Raises `SetupError` when it was never started."""
        if self._child is None:
            raise SetupError(f"{self.name} is not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code of the ended process, negative for a signal; `None` while it runs or before its start."""
        return self._child.poll() if self._child else None

    @property
    def note(self) -> str:
        """What a user should know about it: that its usual port was taken."""
        if self._wanted is None or self._wanted == self.port:
            return ""
        return f"port {self._wanted} is taken, uses {self.port}"

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `SetupError` with the end of its log when it does not."""
        if self.running:
            return
        await self.prepare()
        if self.port is not None and not self._settled and not is_free(self.port):
            self.port = free_port()
        for attempt in range(_PORT_TRIES):
            self._log_begins = begin_log(self.log_file)
            self._child = self.spawn()
            if await self._answers():
                return
            # Another program took the port since it was looked at. Not asked of the port: that program may have
            # given it back by now.
            if self._port_was_taken() and not self._settled:
                self.port = free_port()
                continue
            if attempt + 1 >= self.other_tries:
                break
            await asyncio.sleep(0.05 * (attempt + 1))
        if self._settled and self._port_was_taken():
            raise SetupError(
                f"another program took {self.name}'s port {self.port} on {HOST} while it was down; "
                f"end that program, or restart the platform, which then takes a free port (log: {self.log_file})"
            )
        raise SetupError(f"{self.name} ended with exit code {self.exit_code}{self._where()}: {self._said()}")

    async def _answers(self) -> bool:
        """Wait for readiness; `False` when the process ended instead."""
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.running:
                return False
            if await self.ready():
                self._settled = True
                return True
            await asyncio.sleep(_POLL)
        await self.kill()
        raise SetupError(f"{self.name} did not answer{self._where()} within {self.start_timeout:.0f} s: {self._said()}")

    async def stop(self, *, timeout: float = 20.0) -> None:
        """Ask it to end and wait; after `timeout` seconds it is killed. Nothing happens when it is not running."""
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.send(self.stop_signal)
        if not await child.wait(timeout):
            await self.kill()

    async def kill(self) -> None:
        """End it at once, as a crash does (SIGKILL), and wait until it and its own children are gone."""
        if self._child is not None:
            await self._child.kill_all()

    async def restart(self) -> None:
        """`stop` and `start`, on the same port with the same data."""
        await self.stop()
        await self.start()

    def _port_was_taken(self) -> bool:
        return self.port is not None and port_was_taken(self.log_file, self._log_begins)

    def _where(self) -> str:
        return "" if self.port is None else f" on {HOST}:{self.port}"

    def _said(self) -> str:
        return f"{last_words(self.log_file, self._log_begins) or 'no output'} (log: {self.log_file})"
