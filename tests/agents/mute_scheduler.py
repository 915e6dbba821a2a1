"""A scheduler that dies by kill -9 between the commit of an accepted run and its dispatch."""

from __future__ import annotations

import os
import signal

from perdure import subjects
from perdure.bus.outgoing import Outgoing
from perdure.bus.service import serve
from services.scheduler.service import Scheduler

put = Outgoing.put


def die(outgoing: Outgoing, subject: str, payload: bytes, *, soon: bool = False) -> bool:
    if subject.startswith(f"{subjects.WORK}."):
        os.kill(os.getpid(), signal.SIGKILL)
    return put(outgoing, subject, payload, soon=soon)


Outgoing.put = die  # type: ignore[method-assign]

if __name__ == "__main__":
    serve(Scheduler())
