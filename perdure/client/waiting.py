"""Waiting for a run's end: the word of it wakes, the run's row decides."""

from __future__ import annotations

from typing import Any, Final

from nats import errors as nats_errors

from perdure import subjects
from perdure.client.connection import Connection
from perdure.client.types import STOPPED
from perdure.errors import Unavailable

LOOK_EVERY: Final = 1.0  # seconds: the word of an end may be lost, the row is not


async def wait_for_end(connection: Connection, run_id: str) -> dict[str, Any]:
    """The run, as `run.get` gives it, once it has ended or cannot go on by itself.

    Waits through restarts of every part of the platform. Raises `NotFound`, and `Unavailable` when the client is
    closed.
    """
    nats = await connection.nats()
    ended = await nats.subscribe(subjects.run_ended("*", run_id))
    try:
        while True:
            run = await connection.look(run_id)
            if run is not None and run["status"] in STOPPED:
                return await connection.complete(run)
            try:
                await ended.next_msg(timeout=LOOK_EVERY)
            except TimeoutError:
                continue
    except nats_errors.Error as error:
        raise Unavailable(f"the connection was closed while run {run_id} was waited for") from error
    finally:
        if not nats.is_closed:
            await ended.unsubscribe()
