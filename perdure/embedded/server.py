"""What the embedded servers have in common: one child process with a port, a data folder and a log file."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from perdure.embedded.accounts import Account
from perdure.embedded.child import Child, begin_log, last_words, port_was_taken
from perdure.embedded.ports import HOST, free_port, is_free
from perdure.errors import SetupError

_POLL = 0.01
_PORT_TRIES = 10
_OTHER_TRIES = 5


class EmbeddedServer(ABC):
    """A server that is our child. `start` returns when it answers, and that it is ours is proved, not assumed.

    `home` is the folder of the platform: data go to `home/<name>`, the log to `home/log/<name>.log`. `port` is the
    port on loopback that is tried first; when another program has it, as with `None`, a free one is taken and `note`
    says so. The port stays the same over restarts. `id` is what some servers prove themselves by.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout: ClassVar[float] = 30.0

    def __init__(self, home: Path, *, port: int | None = None) -> None:
        self.home = home.resolve()
        self.data_dir = self.home / self.name
        self.log_file = self.home / "log" / f"{self.name}.log"
        self.id = f"perdure-{uuid4().hex[:12]}"
        self.port = free_port() if port is None else port
        self._wanted = port
        self._settled = False  # it has answered on this port, which clients know now
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
        """Whether it answers now; called until it does. A server of someone else on the port is a no."""

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
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        await self.prepare()
        if not self._settled and not is_free(self.port):
            self.port = free_port()
        for attempt in range(_PORT_TRIES):
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
            # Another program may have taken the port since it was looked at.
            taken = self._port_was_taken()
            if taken and not self._settled:
                self.port = free_port()
                continue
            # What may pass: a killed server's last children still hold its memory, or its port.
            if attempt + 1 >= _OTHER_TRIES:
                break
            await asyncio.sleep(0.05 * (attempt + 1))
        if self._settled and self._port_was_taken():
            raise SetupError(
                f"another program took {self.name}'s port {self.port} on {HOST} while it was down; "
                f"end that program, or restart the platform, which then takes a free port (log: {self.log_file})"
            )
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
                self._settled = True
                return True
            await asyncio.sleep(_POLL)
        await self.kill()
        raise SetupError(
            f"{self.name} did not answer on {HOST}:{self.port} within {self.start_timeout:.0f} s: {self._said()} "
            f"(log: {self.log_file})"
        )

    def _port_was_taken(self) -> bool:
        return port_was_taken(self.log_file, self._log_begins)

    def _said(self) -> str:
        return last_words(self.log_file, self._log_begins) or f"exit code {self.exit_code}, no output"


async def ask(port: int, question: bytes, *, until: bytes = b"\n", timeout: float = 1.0) -> bytes:
    """Send `question` to a local port and return the answer up to `until`, `b""` when there is none."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                if question:
                    writer.write(question)
                return await reader.readuntil(until)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
        return b""
