"""Runs agents inside a program: `AgentRunner` for scripts and notebooks, `run_agent` for a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from perdure import subjects
from perdure.agent.process import AgentProcess
from perdure.bus import wire
from perdure.bus.service import serve
from perdure.embedded.ensure import Hold, ensure_platform
from perdure.embedded.locate import locate, use_offline_model
from perdure.embedded.processes import CORE
from perdure.errors import SetupError, Unavailable
from perdure.observe.logging import quiet_by_default
from perdure.runner.load import AnyAgent
from perdure.runner.steering import Steering
from perdure.settings import Settings, load_settings

if TYPE_CHECKING:
    from perdure.runner.serving import Serving

T = TypeVar("T")
log = structlog.get_logger(__name__)

ASK_FOR = 30.0  # seconds of one request; a longer run is asked for again under the same id


def run_agent(agent: AnyAgent, settings: Settings | None = None) -> None:
    """Run one agent as this process, until SIGTERM or Ctrl-C; then it drains. The environment names the platform.

    `agent` is a `BaseAgent` subclass or an instance such as a `DurableAgent`. Exits with status 1 and one clear line
    when a server cannot be reached.
    """
    serve(AgentProcess(agent, locate(settings or load_settings())))


class AgentRunner(Steering):
    """Runs agents inside this program.

    It uses the servers that the environment names, else the platform that runs in `PERDURE_HOME`, else it starts one
    there on free ports (NATS, Postgres, Redis and the services; data is kept). Programs of one folder share that one,
    and it ends with the last of them, at `shutdown` or when the program ends. The runs are durable either way.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._hold: Hold | None = None
        self._located: Settings | None = None
        self._starting: asyncio.Lock | None = None
        self._processes: dict[str, AgentProcess] = {}
        self._served: dict[str, Serving] = {}

    def run_sync(
        self,
        agent: AnyAgent,
        task: str | dict[str, Any],
        *,
        session_id: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run `agent` on `task` and return its output, in the agent's `output_type` if it has one.

        Raises `RunFailed` when the run ends otherwise, `TimeoutError` after `timeout` seconds (the run goes on), and
        `SetupError` when the platform cannot be started. Inside async code use `await runner.run(...)`.
        """
        self._refuse_in_a_loop("run_sync")
        return self._submit(self._run(agent, task, session_id, timeout)).result()

    async def run(
        self,
        agent: AnyAgent,
        task: str | dict[str, Any],
        *,
        session_id: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The same as `run_sync`, in async code."""
        return await asyncio.wrap_future(self._submit(self._run(agent, task, session_id, timeout)))

    def serve(self, agent: AnyAgent, *, host: str = "127.0.0.1", port: int = 8001) -> None:
        """Serve `agent` over HTTP, until Ctrl-C, SIGTERM, or `shutdown` from another thread; then it has drained.

        `POST /run` starts a run of it; the other routes are those of the gateway, for this agent alone. Outside
        loopback every route but health needs a key (`perdure key create`). `port` 0 takes a free one. Raises
        `SetupError` when the address cannot be listened on.
        """
        self._refuse_in_a_loop("serve")
        serving = self._submit(self._serve(agent, host, port)).result()
        sys.stderr.write(f"agent {agent.name} is served at {serving.url}\n")
        asked = threading.Event()
        before: Any = None
        main = threading.current_thread() is threading.main_thread()
        if main:
            before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
        try:
            while not (serving.ended.wait(0.1) or asked.is_set()):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
        self.shutdown(agent)

    def shutdown(self, agent: AnyAgent | None = None) -> None:
        """Drain and stop `agent`, or all agents; with the last one the platform is used no more."""
        if self._loop is None or self._thread is None:
            return
        self._submit(self._stop(agent)).result()
        if not self._processes:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None

    # -- inside -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_in_a_loop(what: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        other = {"run_sync": "runner.run(agent, task)", "serve": "asyncio.to_thread(runner.serve, agent)"}[what]
        raise RuntimeError(f"{what} would block this event loop: use `await {other}`")

    def _submit(self, work: Coroutine[Any, Any, T]) -> Any:
        with self._guard:
            if self._loop is None:
                quiet_by_default()
                self._loop = _new_loop()
                self._thread = threading.Thread(target=self._turn, args=(self._loop,), name="perdure", daemon=True)
                self._thread.start()
                # Not `atexit`: when that runs, Python has closed the thread pools that an orderly end still needs.
                threading._register_atexit(self.shutdown)  # type: ignore[attr-defined]  # noqa: SLF001
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @staticmethod
    def _turn(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _run(self, agent: AnyAgent, task: Any, session_id: str | None, timeout: float | None) -> Any:
        if not isinstance(task, str | dict):
            raise TypeError(f"a task is text or a dict, not {type(task).__name__}")
        process = await self._started(agent)
        payload = {"task": task, "run_id": subjects.new_run_id(), "session_id": session_id}
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = ASK_FOR if deadline is None else min(ASK_FOR, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"run {payload['run_id']} has not ended after {timeout:g} s; it goes on")
            try:
                reply = await wire.request(
                    process.nats, subjects.run_ask(process.name), {**payload, "timeout": left}, timeout=left + 5
                )
            except Unavailable as error:
                log.info("asking again", action="runner.retry", error=error.message)
                await asyncio.sleep(0.5)
                continue
            if reply["status"] == "completed":
                return process.agent.typed(reply["output"])

    async def _started(self, agent: AnyAgent) -> AgentProcess:
        async with self._one_at_a_time():
            known = self._processes.get(agent.name)
            if known is not None and known._given is agent:  # noqa: SLF001 -- the same object: nothing to start
                return known
            if known is not None:
                await self._unserve(agent.name)
                await known.stop()
            located = await self._locate()
            instance = f"{located.instance_id}-{len(self._processes)}"
            process = AgentProcess(agent, located.model_copy(update={"instance_id": instance}))
            await process.start()
            self._processes[agent.name] = process
            return process

    async def _platform(self) -> Settings:
        async with self._one_at_a_time():
            return await self._locate()

    def _one_at_a_time(self) -> asyncio.Lock:
        if self._starting is None:
            self._starting = asyncio.Lock()
        return self._starting

    async def _unserve(self, name: str) -> None:
        serving = self._served.pop(name, None)
        if serving is not None:
            await serving.stop()

    async def _locate(self) -> Settings:
        if self._located is None:
            self._located = await self._find_platform()
        return self._located

    async def _serve(self, agent: AnyAgent, host: str, port: int) -> Serving:
        process = await self._started(agent)
        if process.name in self._served:
            raise SetupError(f"agent {process.name} is served already, at {self._served[process.name].url}")
        # in a thread: HTTP is loaded by programs that serve, and by no others
        module = await asyncio.to_thread(import_module, "perdure.runner.serving")
        serving: Serving = await module.Serving.start(process, host, port)
        self._served[process.name] = serving
        return serving

    async def _find_platform(self) -> Settings:
        settings = self._settings or load_settings()
        urls, self._hold = await ensure_platform(settings, processes=_services(settings))
        use_offline_model(urls)
        found = {"nats_url": urls.nats_url, "database_url": urls.database_url, "redis_url": urls.redis_url}
        return settings.model_copy(update=found)

    async def _stop(self, agent: AnyAgent | None) -> None:
        names = list(self._processes) if agent is None else [agent.name]
        for name in names:
            await self._unserve(name)
            process = self._processes.pop(name, None)
            if process is not None:
                await process.stop()
        if not self._processes and self._hold is not None:
            await self._hold.stop()
            self._hold = None
        if not self._processes:
            self._located = None
            self._starting = None


def _services(settings: Settings) -> list[Any] | None:
    """The services that agents need, unless the environment names a whole platform, whose services run already."""
    given = {"nats_url", "database_url", "redis_url"} <= settings.model_fields_set
    return [] if given else list(CORE)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 -- not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
