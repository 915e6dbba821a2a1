"""Runs the platform that the programs of one home share, while any of them uses it.

`python -m perdure.embedded.keeper SPECS` is started by the first program that needs a platform (`ensure_platform`) and
is no child of it in any sense that matters: the program may end, and others go on. Each user holds a shared lock on
`<home>/platform.users`, which the kernel takes back however the user ends; when nobody holds it, the platform stops.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

import orjson
import structlog

from perdure.embedded.platform import Platform
from perdure.embedded.processes import ProcessSpec
from perdure.embedded.state import USERS_FILE, AlreadyRunning, lock_now, open_lock
from perdure.errors import SetupError
from perdure.observe.logging import setup_logging
from perdure.settings import Settings, load_settings

HOME_IN_USE = 3
"""The exit code that says: another platform runs, starts or stops in this home."""
ERROR = "error: "
"""Before the line that says why it does not start."""
_POLL = 0.2
log = structlog.get_logger()


def arguments(specs: Sequence[ProcessSpec] | None) -> list[str]:
    """What follows the Python program: the processes to run beside the servers, `None` for all."""
    said = None if specs is None else [asdict(spec) for spec in specs]
    return ["-m", "perdure.embedded.keeper", orjson.dumps(said).decode()]


def main(said: str) -> int:
    """Start, keep, stop; the exit code."""
    settings = load_settings()
    setup_logging(settings, service="platform")
    raw = orjson.loads(said)
    specs = (
        None
        if raw is None
        else [ProcessSpec(**{**s, "argv": tuple(s["argv"]), "after": tuple(s["after"])}) for s in raw]
    )
    try:
        asyncio.run(_keep(settings, specs))
    except AlreadyRunning:
        return HOME_IN_USE
    except SetupError as error:
        print(f"{ERROR}{error}", flush=True)  # noqa: T201  its output is read by who started it
        return 1
    return 0


async def _keep(settings: Settings, specs: list[ProcessSpec] | None) -> None:
    platform = Platform(settings, processes=specs, free_ports=True, shared=True)
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    with open_lock(platform.home, USERS_FILE) as users:
        async with platform:
            # Taken and never given back: a program that comes now waits until this platform has gone.
            while not asked.is_set() and not lock_now(users, fcntl.LOCK_EX):
                await asyncio.sleep(_POLL)
            log.info("nobody uses this platform any more", action="platform.unused", asked=asked.is_set())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
