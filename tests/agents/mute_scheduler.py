"""A scheduler that dies by kill -9 between the commit of an accepted run and its dispatch."""

from __future__ import annotations

import os
import signal
from typing import Any

from perdure.bus.service import serve
from perdure.engine import runs
from services.scheduler.service import Scheduler


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


runs.wake = die  # type: ignore[assignment]

if __name__ == "__main__":
    serve(Scheduler())
