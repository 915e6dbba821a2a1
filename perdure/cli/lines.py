"""Lines of standard input, read without a thread that would keep the program from ending."""

from __future__ import annotations

import asyncio
import os
from typing import Final

CHUNK: Final = 65_536


class Lines:
    """Reads lines of a file descriptor: a terminal, a pipe or a file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = b""
        self._over = False

    async def next(self) -> str | None:
        """The next line without its end; None when there are no more. A last line needs no end."""
        while b"\n" not in self._waiting and not self._over:
            await self._readable()
            chunk = await asyncio.to_thread(os.read, self._descriptor, CHUNK)
            self._waiting += chunk
            self._over = not chunk
        if not self._waiting:
            return None
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._descriptor, ready.set)
        except PermissionError:
            return  # a plain file: it never makes us wait
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)
