"""What the embedded servers have in common: one child process with a port, a data folder and a log file."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from perdure.embedded.accounts import Account
from perdure.embedded.child import Child, begin_log, last_words
from perdure.embedded.ports import HOST, free_port
from perdure.errors import SetupError

_POLL = 0.01


class EmbeddedServer(ABC):
    """A server that is our child. `start` returns when it answers; the port stays the same over restarts.

    `home` is the folder of the platform: data go to `home/<name>`, the log to `home/log/<name>.log`. `port` is the
    port on loopback, `None` takes a free one.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 30.0

    def __init__(self, home: Path, *, port: int | None = None) -> None:
        self.home = home.resolve()
        self.data_dir = self.home / self.name
        self.log_file = self.home / "log" / f"{self.name}.log"
        self._fixed_port = port is not None
        self.port = free_port() if port is None else port
        self._child: Child | None = None
        self._log_begins = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether it answers now; called until it does."""

    async def prepare(self) -> None:
        """Make the data folder ready, before each start."""
        self.data_dir.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Our environment without what would change how a server behaves."""
        odd = ("PG", "LD_", "LC_", "LANG")
        return {name: value for name, value in os.environ.items() if not name.startswith(odd)}

    @property
    def account(self) -> Account | None:
        """The user it runs as, `None` for ours."""
        return None

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

    async def start(self) -> None:
        """Start it and wait until it answers. Raises `SetupError` with the end of its log when it does not."""
        if self.running:
            return
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        await self.prepare()
        for attempt in range(10):
            self._log_begins = begin_log(self.log_file)
            self._child = Child.spawn(
                self.command(),
                log_file=self.log_file,
                env=self.environment(),
                cwd=Path("/"),
                account=self.account,
                death_signal=self.stop_signal,
            )
            if await self._answers():
                return
            # Another program may have taken the free port in between, and a killed server's last children may
            # still hold its memory: both pass.
            if self._fixed_port and attempt >= 1:
                break
            if not self._fixed_port:
                self.port = free_port()
            await asyncio.sleep(0.05 * (attempt + 1))
        raise SetupError(f"{self.name} does not start on port {self.port}: {self._said()} (log: {self.log_file})")

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

    async def _answers(self) -> bool:
        """Wait for readiness; `False` when the process ended instead."""
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.running:
                return False
            if await self.ready():
                self._fixed_port = True
                return True
            await asyncio.sleep(_POLL)
        await self.kill()
        raise SetupError(
            f"{self.name} did not answer on {HOST}:{self.port} within {self.start_timeout:.0f} s: {self._said()} "
            f"(log: {self.log_file})"
        )

    def _said(self) -> str:
        return last_words(self.log_file, self._log_begins) or f"exit code {self.exit_code}, no output"


async def ask(port: int, question: bytes, *, timeout: float = 1.0) -> bytes:
    """Send `question` to a local port and return the first line of the answer, `b""` when there is none."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                if question:
                    writer.write(question)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
