"""One child process: in a session of its own, ended when we die, its output in a log file."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from perdure.embedded.accounts import Account

_PR_SET_PDEATHSIG = 1
_POLL = 0.01
# Loaded before any fork: a child between fork and exec may not load libraries.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A running program. Its exit code is collected by `poll` and `wait`."""

    def __init__(self, process: subprocess.Popen[bytes], started: float) -> None:
        self._process = process
        self.pid = process.pid
        self.started = started

    @classmethod
    def spawn(
        cls,
        command: Sequence[str],
        *,
        log_file: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> Child:
        """Start `command`; its output is appended to `log_file`.

        It gets a session of its own, so that a terminal's Ctrl-C reaches only us, and on Linux `death_signal` when
        the thread that calls this ends, so that nothing is left behind by a kill -9. It takes a few milliseconds, in
        the calling thread on purpose: a worker thread would end earlier than we do. Raises `OSError`.
        """
        with log_file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  the commands are our own
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                preexec_fn=_die_with_parent(death_signal),  # noqa: PLW1509  one system call, no lock, no allocation
            )
        return cls(process, time.monotonic())

    def poll(self) -> int | None:
        """The exit code, or `None` while it runs."""
        return self._process.poll()

    def send(self, what: signal.Signals) -> None:
        """Send a signal; one that has ended gets none."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(what)

    async def wait(self, timeout: float) -> bool:
        """Wait until it has ended, at most `timeout` seconds; whether it has."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL)
        return True


def _die_with_parent(what: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    prctl, number, parent = _libc.prctl, int(what), os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # we died between fork and now
            os._exit(1)

    return ask_kernel
