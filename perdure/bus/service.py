"""What every process is: connect, declare endpoints, be found, work, drain, close."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, ClassVar, Final

import redis.asyncio
import structlog
from nats.aio.client import Client

from perdure import subjects
from perdure.bus.background import Background
from perdure.bus.bucket import Bucket
from perdure.bus.closing import CLOSE_TIMEOUT, close_nats, close_pool, close_redis
from perdure.bus.connection import connect
from perdure.bus.discovery import Discovery
from perdure.bus.endpoint import Endpoint, Handler, Request
from perdure.bus.readings import Readings
from perdure.errors import SetupError
from perdure.observe import tracing
from perdure.observe.consul import ConsulRegistration
from perdure.observe.exporter import Exporter
from perdure.observe.health import Finding, Health, LoopLag
from perdure.observe.logging import setup_logging
from perdure.observe.metrics import Metrics
from perdure.settings import Settings, load_settings
from perdure.store.migrate import need_tables
from perdure.store.postgres import Pool, create_pool, schema_needed
from perdure.store.redis import create_redis
from perdure.store.vault import vault_of

if TYPE_CHECKING:
    from perdure.observe.otel import Traces

__all__ = ["Request", "Service", "serve"]

HEALTH_INTERVAL: Final = 5.0


def _version() -> str:
    try:
        return package_version("perdure")
    except PackageNotFoundError:
        return "0.0.0"


class Service:
    """One process on the bus.

    A subclass names itself, says what it `needs`, declares its endpoints in `on_start` and may use `spawn` for loops.
    `nats`, `pool` and `redis` are there from `on_start` to the end of `on_stop`.
    """

    service_name: ClassVar[str]
    description: ClassVar[str] = ""
    version: ClassVar[str] = _version()
    needs: ClassVar[frozenset[str]] = frozenset({"nats", "postgres", "redis"})
    tags: ClassVar[tuple[str, ...]] = ()
    port: int | None = None  # the TCP port it serves on, for Consul; a service on NATS alone has none
    address: str | None = None  # the host of that port, if it is not that of Consul's own agent
    http_check: str | None = None  # a URL that Consul asks itself

    nats: Client
    pool: Pool
    bucket: Bucket  # where NATS and Postgres are there
    redis: redis.asyncio.Redis

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()
        self.instance_id = self.settings.instance_id
        self.logger = structlog.get_logger(service=self.name, instance=self.instance_id)  # lazy: set up later
        self.health = Health()
        self.lag = LoopLag()
        self.metrics = Metrics()
        self.metrics.add(Readings(self).read)
        self.ready = False
        self.endpoints: list[Endpoint] = []
        self._background = Background(self.logger)
        self._on_start_called = False
        self._discovery: Discovery | None = None
        self.traces: Traces | None = None
        self._exporter: Exporter | None = None
        self._consul: ConsulRegistration | None = None
        self._consul_task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()
        self._lost: str | None = None

    # -- what a subclass may say -------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """The name in `$SRV` and in Consul (for an agent: the agent's): letters, digits, `_` and `-`."""
        return self.service_name

    def describe(self) -> str:
        """What discovery says of this service."""
        return self.description

    def metadata(self) -> dict[str, str]:
        """What `$SRV` and Consul show beside the name; an agent adds `agent` and `config_revision`."""
        shown = {"process": os.environ.get("PERDURE_PROCESS") or self.name, "instance": self.instance_id}
        return shown if self._exporter is None else {**shown, "metrics": self._exporter.url}

    def details(self) -> dict[str, Any]:
        """What `$SRV.INFO` says besides to whoever asks for this service by its name."""
        return {}

    async def on_start(self) -> None:
        """Called when the resources are there, before the service can be found: declare endpoints here."""

    async def on_stop(self) -> None:
        """Called when no endpoint takes messages any more, before anything is closed; also when `on_start` failed."""

    async def on_reconnect(self) -> None:
        """Called after each reconnect to NATS: whatever was said in between was missed."""

    # -- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Connect what is needed, call `on_start`, register. Raises `SetupError`, and then leaves nothing open."""
        try:
            await self._open()
            self._on_start_called = True
            with schema_needed():
                await self.on_start()
            await self._register()
        except BaseException:
            await self.stop()
            raise
        self.ready = True
        self.logger.info("ready", action="service.ready", endpoints=len(self.endpoints))

    async def stop(self) -> None:
        """Drain: take nothing new, finish what runs within `settings.drain_timeout`, then close. Safe to repeat."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._shut_down())
        await asyncio.shield(self._stopping)

    async def run(self) -> None:
        """Start, serve until SIGTERM, SIGINT or `ask_to_stop`, then stop. A second signal ends the process at once.

        Raises `SetupError` when the connection to NATS was closed for good, so that a supervisor starts it again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            await self.start()
            await self._stop_asked.wait()
        finally:
            await self.stop()
        if self._lost:
            raise SetupError(self._lost)

    def ask_to_stop(self) -> None:
        """Make `run` stop the service and return."""
        self._stop_asked.set()

    async def endpoint(
        self,
        name: str,
        subject: str,
        handler: Handler,
        *,
        queue: str | None,
        concurrency: int = 256,
        metadata: Mapping[str, str] | None = None,
    ) -> Endpoint:
        """Answer requests on `subject`, at most `concurrency` at a time, shared with the others of `queue`.

        What `handler` returns is the JSON reply. An `ApiError` travels as it is; of any other exception the caller
        learns an `error_id` only. A request that finds no slot within a second is answered `rate_limited`.
        """
        made = Endpoint(self.nats, name, subject, handler, queue=queue, concurrency=concurrency, metadata=metadata)
        made.traces = self.traces
        await made.open()
        self.endpoints.append(made)
        return made

    def spawn(self, coroutine_function: Callable[[], Awaitable[None]], *, name: str) -> asyncio.Task[None]:
        """Run a loop in the background until `stop`: when it fails, that is logged and it begins anew after a while."""
        return self._background.spawn(coroutine_function, name)

    # -- inside ------------------------------------------------------------------------------------------------------
    async def _open(self) -> None:
        if tracing.wanted(self.settings):
            said = {"service": self.name, "instance": self.instance_id, "version": self.version}
            self.traces = await asyncio.to_thread(tracing.load, self.settings, **said)
        if "nats" in self.needs:
            self.nats = await connect(
                self.settings,
                f"{self.name} {self.instance_id}",
                on_reconnect=self._reconnected,
                on_closed=self._closed,
            )
            self.health.add("nats", self._check_nats)
        if "postgres" in self.needs:
            self.pool = await create_pool(self.settings, self.name)
            await need_tables(self.pool)
            self.health.add("postgres", self._check_postgres)
            if "nats" in self.needs:
                self.bucket = Bucket(self.nats, self.settings.namespace)
                vault_of(self.pool).objects = self.bucket
        if "redis" in self.needs:
            self.redis = create_redis(self.settings)
            self.health.add("redis", self._check_redis, at_worst="warning")  # a cache: work goes on without it
        self.health.add("event_loop", self.lag.check)
        self.health.add("background", self._background.check)
        self.spawn(self.lag.measure, name="event-loop-lag")
        if self.settings.metrics_port is not None:
            exporter = Exporter(self.settings, self.metrics, ready=lambda: self.ready, health=self.health.report)
            await exporter.start()
            self._exporter = exporter

    async def _register(self) -> None:
        await self.health.report()
        self.spawn(self._watch_health, name="health")
        self._consul = ConsulRegistration(
            self.settings,
            name=self.name,
            instance_id=self.instance_id,
            health=self.health.report,
            meta=lambda: {"version": self.version, **self.metadata()},
            tags=("perdure", *self.tags),
            port=self.port,
            address=self.address,
            http_check=self.http_check,
        )
        self._consul_task = self.spawn(self._consul.run, name="consul")
        if "nats" not in self.needs:
            return
        subject = subjects.health(self.name, self.instance_id)
        (await self.endpoint("health", subject, self._tell_health, queue=None)).data = self.health.last
        self._discovery = Discovery(
            self.nats,
            name=self.name,
            instance_id=self.instance_id,
            version=self.version,
            description=self.describe(),
            metadata=self.metadata,
            endpoints=self.endpoints,
            details=self.details,
        )
        await self._discovery.open()
        await self.nats.flush()

    async def _shut_down(self) -> None:
        was_ready, self.ready = self.ready, False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.drain_timeout
        self.logger.info("draining", action="service.draining") if was_ready else None
        if self._discovery is not None:
            await self._discovery.close()
        await self._leave_consul()
        await asyncio.gather(*(each.close() for each in self.endpoints))
        await asyncio.gather(*(each.finish(deadline) for each in self.endpoints))
        if self._on_start_called:
            await self._call_on_stop(deadline)
        await self._background.cancel()
        await self._close_resources()
        self.logger.info("stopped", action="service.stopped") if was_ready else None

    async def _call_on_stop(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(deadline - asyncio.get_running_loop().time(), CLOSE_TIMEOUT)):
                await self.on_stop()
        except Exception:
            self.logger.exception("on_stop failed; closing anyway", action="service.on_stop_failed")

    async def _leave_consul(self) -> None:
        if self._consul is None or self._consul_task is None:
            return
        self._consul_task.cancel()
        await asyncio.gather(self._consul_task, return_exceptions=True)
        await self._consul.deregister()

    async def _close_resources(self) -> None:
        if self._exporter is not None:
            await self._exporter.stop()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close().wait, tracing.FLUSH_SECONDS)
        if hasattr(self, "nats"):
            await close_nats(self.nats, self.logger)
        if hasattr(self, "pool"):
            await close_pool(self.pool, self.logger)
        if hasattr(self, "redis"):
            await close_redis(self.redis, self.logger)

    def _signalled(self, number: int) -> None:
        if self._stop_asked.is_set():
            os._exit(128 + number)
        self.logger.info("asked to stop", action="service.signalled", signal=signal.Signals(number).name)
        self._stop_asked.set()

    async def _reconnected(self) -> None:
        if self.ready:
            await self.on_reconnect()

    async def _closed(self) -> None:
        if self._stopping is None:
            self._lost = "the connection to NATS was closed for good; see the log lines before this one"
            self.logger.error(self._lost, action="service.nats_closed")
            self._stop_asked.set()

    async def _watch_health(self) -> None:
        said = "ok"
        while True:
            report = await self.health.report()
            if report["status"] != said:
                said = report["status"]
                bad = {name: each["text"] for name, each in report["checks"].items() if each["status"] != "ok"}
                self.logger.warning("health changed", action="service.health", status=said, findings=bad)
            await asyncio.sleep(HEALTH_INTERVAL)

    async def _tell_health(self, _request: Request) -> dict[str, Any]:
        return await self.health.report()

    async def _check_nats(self) -> Finding:
        return ("ok", "connected") if self.nats.is_connected else ("critical", "not connected")

    async def _check_postgres(self) -> Finding:
        await self.pool.fetchval("SELECT 1")
        return "ok", "answers"

    async def _check_redis(self) -> Finding:
        await self.redis.ping()
        return "ok", "answers"


def serve(service: Service) -> None:
    """The `main` of a process: logging, the fast event loop, `service.run()`. Exit status 1 when it cannot run."""
    setup_logging(service.settings, service=service.name)
    gc.collect()
    gc.freeze()  # what is imported stays: collections need not look at it again and again
    gc.set_threshold(10_000, 20, 20)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(service.run())
    except SetupError as error:
        service.logger.error(str(error), action="service.setup_failed")  # noqa: TRY400 - the text says it all
        sys.exit(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
