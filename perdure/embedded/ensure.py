"""A platform for a program that only wants to use one."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from perdure.embedded import keeper
from perdure.embedded.child import Child, begin_log, last_words
from perdure.embedded.processes import ProcessSpec, python_environment
from perdure.embedded.state import USERS_FILE, PlatformUrls, find_running, lock_now, open_lock, running_state
from perdure.errors import SetupError
from perdure.settings import Settings

START_TIMEOUT = 120.0
_STOP_TIMEOUT = 60.0
_POLL = 0.02
_GIVEN = {"nats_url": "NATS_URL", "database_url": "DATABASE_URL", "redis_url": "REDIS_URL"}


class Hold:
    """The use of a home's platform by this program. It ends with `stop`, or with the process, even by kill -9."""

    def __init__(self, home: Path, users: IO[bytes]) -> None:
        self._home = home
        self._users = users

    @classmethod
    async def take(cls, home: Path, *, deadline: float) -> Hold:
        """Become a user of the home; waits while the platform of the last user stops."""
        users = open_lock(home, USERS_FILE)
        while not lock_now(users, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                users.close()
                raise SetupError(f"the last platform in {home} does not end; see {_log(home)}, or `perdure down`")
            await asyncio.sleep(_POLL)
        return cls(home, users)

    async def stop(self) -> None:
        """Use it no longer. The last user of a shared platform ends it and returns when it is gone. Safe to repeat."""
        if self._users.closed:
            return
        with self._users as users:
            last = lock_now(users, fcntl.LOCK_EX)
            if not last and lock_now(users, fcntl.LOCK_SH):
                return  # others use it
            # Else the platform has seen by itself that it is not used, or another last user ends it.
            state = running_state(self._home)
            if state is None or not state.shared:
                return
            process = state.supervisor.process()
            if last and process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_TIMEOUT
            while state.supervisor.process() is not None and time.monotonic() < deadline:
                await asyncio.sleep(_POLL)


async def ensure_platform(
    settings: Settings, *, processes: list[ProcessSpec] | None = None
) -> tuple[PlatformUrls, Hold | None]:
    """The platform of `settings.home`: the one that runs there, else a shared one on free ports, which is started.

    The caller stops the `Hold` when it needs the platform no more; a shared one ends with its last user. Servers that
    the environment gives are used either way: when all three are given and `processes` is empty, nothing is started
    and there is nothing to hold. Raises `SetupError`.
    """
    if _GIVEN.keys() <= settings.model_fields_set and not processes:
        return PlatformUrls(settings.nats_url, settings.database_url, settings.redis_url), None
    home = settings.home.resolve()
    deadline = time.monotonic() + START_TIMEOUT
    hold = await Hold.take(home, deadline=deadline)
    try:
        return await _found_or_started(settings, home, processes, deadline), hold
    except BaseException:
        await hold.stop()
        raise


async def _found_or_started(
    settings: Settings, home: Path, processes: list[ProcessSpec] | None, deadline: float
) -> PlatformUrls:
    given = {_GIVEN[name]: getattr(settings, name) for name in _GIVEN.keys() & settings.model_fields_set}
    child: Child | None = None
    begins = 0
    try:
        while time.monotonic() < deadline:
            if (urls := find_running(home)) is not None:
                return urls
            code = child.poll() if child else keeper.HOME_IN_USE
            if code not in (None, keeper.HOME_IN_USE):
                said = last_words(_log(home), begins, lines=10).rpartition(keeper.ERROR)[2]
                raise SetupError(said or f"the platform ended with exit code {code} (log: {_log(home)})")
            if code is not None and running_state(home) is None:
                # None is there, and none of ours is coming.
                begins = begin_log(_log(home))
                child = Child.spawn(
                    [sys.executable, "-P", *keeper.arguments(processes)],
                    log_file=_log(home),
                    env=python_environment({**given, "PERDURE_HOME": str(home)}),
                    death_signal=None,
                )
            await asyncio.sleep(_POLL)
    finally:
        if child is not None:
            child.let_go()
    raise SetupError(f"no platform was ready in {home} within {START_TIMEOUT:.0f} s (log: {_log(home)})")


def _log(home: Path) -> Path:
    return home / "log" / "platform.log"
