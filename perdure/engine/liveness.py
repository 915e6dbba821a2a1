"""How a process shows that it lives: a session lock, gone with the process, and a lease, for hangs and partitions.

Both are kept by a thread with an event loop and a connection of its own, so that a busy main loop does not look like
a dead process; but when the main loop hangs, the thread stops renewing, and the lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import asyncpg
import structlog

from perdure.engine.offer import Offer
from perdure.settings import Settings
from perdure.store.postgres import Connection, connect_direct
from perdure.store.queries import load_queries

_SQL = load_queries("engine.sql")
log = structlog.get_logger(__name__)


class Liveness:
    """Keeps this process's row in `processes` alive. `process_id` changes when the row was taken for lost.

    `on_lost` is called in the main loop when the lease is over or the row was given up, before this process can hold
    anything under its next id: every run it holds may be another's by then.
    """

    def __init__(self, settings: Settings, agent_name: str, on_lost: Callable[[], None], offer: Offer) -> None:
        self._settings = settings
        self._agent_name = agent_name
        self._on_lost = on_lost
        self._offer = offer
        self._main: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._registered = threading.Event()
        self._pulse = 0.0  # when the main loop was last seen
        self._until = 0.0  # the lease, by this machine's monotonic clock
        self._failure: BaseException | None = None
        self._leave = True
        self.process_id = ""
        # The first half of every process_id of this instance, and the middle of the subjects that it hears: the agent
        # is a token of its own, so that NATS can refuse what is meant for other agents.
        self.token = f"{agent_name}.{settings.instance_id}"

    @property
    def leased(self) -> bool:
        """Whether this process may start a step: its lease is not over."""
        return time.monotonic() < self._until

    async def start(self) -> None:
        """Register this process; raises what the first connection raises."""
        self._main = asyncio.get_running_loop()
        self._pulse = time.monotonic()
        self._beat()
        self._thread = threading.Thread(target=self._run, name="perdure-liveness", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._registered.wait, 30)
        if self._failure is not None:
            raise self._failure

    async def stop(self, *, leave: bool = True) -> None:
        """Give up the lock, and say so in the process's row; without `leave` it only falls silent, as a kill does."""
        self._leave = leave
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)

    def _beat(self) -> None:
        """Say, from the main loop, that it turns."""
        self._pulse = time.monotonic()
        if self._main is not None and not self._stop.is_set():
            self._main.call_later(self._settings.lease_seconds / 10, self._beat)

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except BaseException as error:  # noqa: BLE001 -- a thread's error is raised where it was started
            self._failure = error
            self._registered.set()

    async def _keep(self) -> None:
        """Hold the lock and renew the lease, over lost connections and restarts of the server, until stopped."""
        lock_key = -1
        connection: Connection | None = None
        while not self._stop.is_set():
            try:
                if connection is None or connection.is_closed():
                    connection = await connect_direct(self._settings, f"liveness {self._agent_name}")
                    lock_key = await self._take_lock(connection)
                    if not self.process_id or not await connection.fetchval(
                        _SQL["relock_process"], self.process_id, lock_key, self._settings.lease_seconds
                    ):
                        await self._register(connection, lock_key)
                    self._extend(time.monotonic())
                    self._registered.set()
                await self._renew(connection, lock_key)
            except Exception as error:
                if not self._registered.is_set():
                    raise
                log.warning("lease not renewed", action="lease.retry", error=type(error).__name__)
                if connection is not None:
                    connection.terminate()
                connection = None
            await self._pause(0.1 if connection is None else self._settings.lease_seconds / 5)
        if connection is not None and not connection.is_closed():
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                if self._leave:
                    await connection.execute(_SQL["leave_process"], self.process_id)
                await connection.close(timeout=2)

    async def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop.is_set():
            await asyncio.sleep(min(0.05, seconds))
            if not self.leased:
                self._tell_lost()

    async def _take_lock(self, connection: Connection) -> int:
        while True:
            lock_key = int(await connection.fetchval(_SQL["next_lock_key"]))
            if await connection.fetchval(_SQL["take_lock"], lock_key):
                return lock_key

    async def _register(self, connection: Connection, lock_key: int) -> None:
        if self.process_id:
            self._until = 0.0  # no step begins until the runs of the former id were dropped
            self._tell_lost(given_up=True)
        self.process_id = f"{self.token}.{uuid4().hex[:8]}"
        await connection.execute(
            _SQL["register_process"],
            self.process_id,
            self._agent_name,
            self._settings.instance_id,
            lock_key,
            self._settings.lease_seconds,
            self._offer.names,
            self._offer.versions,
        )
        await connection.execute(_SQL["hurry_pending"], self._agent_name)
        log.info("process registered", action="process.registered", process_id=self.process_id)

    async def _renew(self, connection: Connection, lock_key: int) -> None:
        hung_for = time.monotonic() - self._pulse
        if hung_for > self._settings.lease_seconds / 2:
            log.error("the event loop hangs; the lease is not renewed", action="lease.hung", seconds=round(hung_for, 1))
            return
        asked = time.monotonic()
        if await connection.fetchval(_SQL["renew_lease"], self.process_id, self._settings.lease_seconds):
            self._extend(asked)
        else:
            await self._register(connection, lock_key)
            self._extend(asked)

    def _extend(self, asked: float) -> None:
        """The lease as this process counts it began before the database's, so it is over earlier."""
        self._until = asked + self._settings.lease_seconds * 0.9

    def _tell_unleased(self) -> None:
        """In the main loop, where the lease may have been renewed since."""
        if not self.leased:
            self._on_lost()

    def _tell_lost(self, *, given_up: bool = False) -> None:
        if self._main is not None and not self._main.is_closed():
            with contextlib.suppress(RuntimeError):  # the main loop is closing: nobody is left to be told
                self._main.call_soon_threadsafe(self._on_lost if given_up else self._tell_unleased)
