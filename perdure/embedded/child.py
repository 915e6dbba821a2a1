"""One child process: in a session of its own, ended when we die, its output in a log file."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson
import psutil

from perdure.embedded.accounts import Account
from perdure.errors import SetupError

_PR_SET_PDEATHSIG = 1
_POLL = 0.01
_LOG_LIMIT = 16_000_000
_TAKEN = "address already in use"
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
        death_signal: signal.Signals | None = signal.SIGTERM,
    ) -> Child:
        """Start `command`; its output is appended to `log_file`.

        It gets a session of its own, so that a terminal's Ctrl-C reaches only us, and on Linux `death_signal` when
        the thread that calls this ends, so that nothing is left behind by a kill -9. It takes a few milliseconds, in
        the calling thread on purpose: a worker thread would end earlier than we do. `death_signal=None` lets it live
        on. Raises `OSError`.
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

    def let_go(self) -> None:
        """Let it live on without us: a thread collects its end, so that no zombie is left while we live."""
        threading.Thread(target=self._process.wait, name=f"end of {self.pid}", daemon=True).start()

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

    async def kill_all(self) -> None:
        """SIGKILL to it, and to what it started; returns when all are gone. One that has ended gets none."""
        if self.poll() is not None:
            return
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self.pid).children(recursive=True)
        self.send(signal.SIGKILL)
        await self.wait(10.0)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline and any(_alive(process) for process in below):
            await asyncio.sleep(_POLL)


def begin_log(log_file: Path) -> int:
    """Make the log's folder, put a log that has grown aside, and return where the next line will stand.

    Raises `SetupError` when the folder cannot be made.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"{log_file.parent} cannot be made: {error.strerror}. Set PERDURE_HOME to a folder of yours"
        ) from error
    try:
        size = log_file.stat().st_size
    except FileNotFoundError:
        return 0
    if size > _LOG_LIMIT:
        log_file.replace(log_file.with_suffix(".log.1"))
        return 0
    return size


def last_words(log_file: Path, begin: int, *, lines: int = 3) -> str:
    """The last `lines` of a log, as one line, from byte `begin` on."""
    try:
        with log_file.open("rb") as log:
            log.seek(max(begin, log.seek(0, os.SEEK_END) - 20_000))
            said = log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError as error:
        return f"its log cannot be read: {error}"
    return " | ".join(_readable(line.strip()) for line in said[-lines:])


def port_was_taken(log_file: Path, begin: int) -> bool:
    """Whether a child ended because it could not listen: every server says so in the system's own words."""
    return _TAKEN in last_words(log_file, begin, lines=50).lower()


def _readable(line: str) -> str:
    """What a line of a JSON log says to people; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    trouble = str(said.get("exception") or "").strip().splitlines()
    return ": ".join([str(said.get("event", line)), *trouble[-1:]])


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _die_with_parent(what: signal.Signals | None) -> Callable[[], None] | None:
    if _libc is None or what is None:
        return None
    prctl, number, parent = _libc.prctl, int(what), os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # we died between fork and now
            os._exit(1)

    return ask_kernel
