"""The file that says what runs in a home, so that `status`, `down`, agents and the next `up` can find it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import orjson
import psutil

from perdure.errors import SetupError

STATE_FILE = "platform.json"
LOCK_FILE = "platform.lock"
USERS_FILE = "platform.users"


class AlreadyRunning(SetupError):
    """Another platform runs, or starts, in the same home."""


@dataclass(frozen=True, slots=True)
class PlatformUrls:
    """Where a platform is.

    `offline_model_url` is set when the offline model stands in for a real one, `gateway_url` and
    `console_url` when these run.
    """

    nats_url: str
    database_url: str
    redis_url: str
    offline_model_url: str | None = None
    gateway_url: str | None = None
    console_url: str | None = None

    def environment(self) -> dict[str, str]:
        """The variables that make a process use this platform."""
        said = {"NATS_URL": self.nats_url, "DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        if self.gateway_url:
            said["PERDURE_GATEWAY_URL"] = self.gateway_url
        if self.console_url:
            said["PERDURE_CONSOLE_URL"] = self.console_url
        if self.offline_model_url:
            said["OPENAI_BASE_URL"] = self.offline_model_url
            said["OPENAI_API_KEY"] = "offline"
            said["PERDURE_OFFLINE_MODEL_URL"] = self.offline_model_url
        return said


@dataclass(frozen=True, slots=True)
class Running:
    """A process by its id and the moment of its start, which together name one process only."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Running:
        """The process that has this id now; a `Running` that is never alive when there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return cls(pid, 0.0)

    def process(self) -> psutil.Process | None:
        """The process, if it is still that one and alive."""
        try:
            process = psutil.Process(self.pid)
            # the kernel's idea of when it booted moves by a second with the clock
            same = abs(process.create_time() - self.created) < 2.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass(frozen=True, slots=True)
class Part:
    """A server or process of the platform. A server that was given has a URL and no process."""

    name: str
    running: Running | None
    url: str | None = None
    log: str | None = None
    note: str = ""
    stop_signal: int = int(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class PlatformState:
    """What stands in `<home>/platform.json`; `ready` when all of it answers.

    `shared` is a platform that nobody started by hand: it ends with the last program that uses it.
    """

    supervisor: Running
    started_at: str
    urls: PlatformUrls | None = None
    parts: tuple[Part, ...] = ()
    ready: bool = False
    offline_model_url: str | None = None
    shared: bool = False
    version: int = field(default=1)

    def with_parts(self, parts: tuple[Part, ...], **changes: Any) -> PlatformState:
        """The same with other parts."""
        return replace(self, parts=parts, **changes)


def write_state(home: Path, state: PlatformState) -> None:
    """Replace the state file at once; only its owner may read it, since a given URL may hold a password."""
    fresh = home / f"{STATE_FILE}.new"
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  the mode
        file.write(orjson.dumps(asdict(state), option=orjson.OPT_INDENT_2))
    fresh.replace(home / STATE_FILE)


def read_state(home: Path) -> PlatformState | None:
    """The state in `home`, whether it still runs or not; `None` when there is none that can be read."""
    try:
        raw = orjson.loads((home / STATE_FILE).read_bytes())
        parts = tuple(
            Part(**{**part, "running": Running(**part["running"]) if part["running"] else None})
            for part in raw.pop("parts")
        )
        urls = raw.pop("urls")
        supervisor = Running(**raw.pop("supervisor"))
        return PlatformState(supervisor=supervisor, urls=PlatformUrls(**urls) if urls else None, parts=parts, **raw)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None


def remove_state(home: Path) -> None:
    """The platform has stopped."""
    (home / STATE_FILE).unlink(missing_ok=True)


def running_state(home: Path) -> PlatformState | None:
    """The state of a platform that is alive in `home` (perhaps still starting: see `ready`), else `None`."""
    state = read_state(home)
    return state if state is not None and state.supervisor.process() is not None else None


def find_running(home: Path) -> PlatformUrls | None:
    """Where the platform is that is ready in `home`, `None` when none is."""
    state = running_state(home.resolve())
    return state.urls if state is not None and state.ready else None


def open_lock(home: Path, name: str) -> IO[bytes]:
    """A file in `home` to lock; folder and file are made. Raises `SetupError` when they cannot be."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        return (home / name).open("ab")
    except OSError as error:
        raise SetupError(f"{home} cannot be used: {error.strerror}. Set PERDURE_HOME to a folder of yours") from error


def lock_now(file: IO[bytes] | int, how: int) -> bool:
    """Take a lock (`fcntl.LOCK_SH` or `LOCK_EX`) if it is to be had this moment. It is gone with the process."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock(home: Path) -> IO[bytes]:
    """Hold the home for us alone until the file is closed or we die.

    Raises `AlreadyRunning` when it is held, `SetupError` when the folder cannot be used.
    """
    file = open_lock(home, LOCK_FILE)
    if lock_now(file, fcntl.LOCK_EX):
        return file
    file.close()
    state = running_state(home)
    whose = f" (process {state.supervisor.pid})" if state else ""
    until = "; it ends with the last program that uses it" if state and state.shared else ""
    raise AlreadyRunning(
        f"a platform already runs in {home}{whose}{until}; `perdure status` shows it, `perdure down` stops it, "
        "another PERDURE_HOME starts a second one"
    )


async def end_leftovers(home: Path) -> list[str]:
    """End what a supervisor that was killed has left in `home`; returns the names. Call it with the lock held."""
    state = read_state(home)
    if state is None:
        return []
    left = [(part, process) for part in state.parts if part.running and (process := part.running.process())]
    for part, process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(part.stop_signal)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 10
    while loop.time() < deadline and any(part.running and part.running.process() for part, _ in left):
        await asyncio.sleep(0.02)
    for part, process in left:
        if part.running and part.running.process():
            with contextlib.suppress(psutil.Error):
                process.kill()
    remove_state(home)
    return [part.name for part, _ in left]
