"""What the embedded servers have in common: one child process with a port, a data folder and a log file."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from perdure.embedded.accounts import Account
from perdure.embedded.child import Child
from perdure.embedded.ports import HOST, free_port
from perdure.embedded.supervised import Supervised


class EmbeddedServer(Supervised):
    """A server that is our child.

    `home` is the folder of the platform: data go to `home/<name>`, the log to `home/log/<name>.log`. `port` is the
    port on loopback that is tried first, `None` is any free one. `id` is what some servers prove themselves by.
    """

    port: int
    other_tries: ClassVar[int] = 5  # a killed server's last children may still hold its memory, or its port

    def __init__(self, home: Path, *, port: int | None = None) -> None:
        self.home = home.resolve()
        self.data_dir = self.home / self.name
        self.id = f"perdure-{uuid4().hex[:12]}"
        log_file = self.home / "log" / f"{self.name}.log"
        super().__init__(log_file, port=free_port() if port is None else port, wanted=port)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    async def prepare(self) -> None:
        """Make the data folder ready, before each start."""
        self.data_dir.mkdir(parents=True, exist_ok=True)

    def spawn(self) -> Child:
        """Start the server, as `account` if it has one."""
        return Child.spawn(
            self.command(),
            log_file=self.log_file,
            env=self.environment(),
            cwd=Path("/"),
            account=self.account,
            death_signal=self.stop_signal,
        )

    def environment(self) -> dict[str, str]:
        """Our environment without what would change how a server behaves."""
        odd = ("PG", "LD_", "LC_", "LANG")
        return {name: value for name, value in os.environ.items() if not name.startswith(odd)}

    @property
    def account(self) -> Account | None:
        """The user it runs as, `None` for ours."""
        return None


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
