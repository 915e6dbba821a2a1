"""Metrics over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts and stops processes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from perdure.errors import SetupError
from perdure.observe.catalogue import CATALOGUE
from perdure.observe.metrics import Histogram, Metrics, Total, Value
from perdure.settings import Settings

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import Metric as Family

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger()

Readings = Mapping[str, Mapping[tuple[str, ...], Value]]


async def render(metrics: Metrics) -> bytes:
    """Everything that a process counts, in the text format of Prometheus."""
    found = metrics.read()
    return await asyncio.to_thread(_text, found)  # it reads /proc, and the first time it loads a library


def _text(found: Readings) -> bytes:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: PLC0415 -- on demand

    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProcessCollector(registry=None))
    registry.register(_Readings(found))
    return bytes(generate_latest(registry))


class _Readings:
    """A collector of readings that were taken already."""

    def __init__(self, found: Readings) -> None:
        self._found = found

    def collect(self) -> Iterator[Family]:
        """The families, in the order of the catalogue."""
        from prometheus_client import core  # noqa: PLC0415 -- loaded by now

        for name, metric in CATALOGUE.items():
            samples = self._found.get(name)
            if not samples:
                continue
            if metric.kind == "histogram":
                histogram = core.HistogramMetricFamily(name, metric.help, labels=metric.labels)
                for labels, value in samples.items():
                    assert isinstance(value, Histogram)  # noqa: S101 -- by the catalogue
                    histogram.add_metric(labels, list(_buckets(value)), value.sum)
                yield histogram
            elif metric.kind == "summary":
                summary = core.SummaryMetricFamily(name, metric.help, labels=metric.labels)
                for labels, value in samples.items():
                    assert isinstance(value, Total)  # noqa: S101 -- by the catalogue
                    summary.add_metric(labels, value.count, value.sum)
                yield summary
            else:
                kind = core.CounterMetricFamily if metric.kind == "counter" else core.GaugeMetricFamily
                family = kind(name, metric.help, labels=metric.labels)
                for labels, value in samples.items():
                    assert isinstance(value, int | float)  # noqa: S101 -- by the catalogue
                    family.add_metric(labels, value)
                yield family


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip((*(f"{each:g}" for each in histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        yield bound, below


class Exporter:
    """The HTTP port of one process. `url` is where the metrics are, once it has started."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        ready: Callable[[], bool],
        health: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self.url = ""
        self._settings = settings
        self._metrics = metrics
        self._ready = ready
        self._health = health
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. A port that is taken is replaced by a free one; `SetupError` when there is no such address."""
        web = await asyncio.to_thread(_load_web)
        host, wanted = self._settings.metrics_host, self._settings.metrics_port or 0
        bound = self._bind(host, wanted)
        app = web.Application()
        app.router.add_get("/metrics", self._tell)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._can_work)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, bound).start()
        except BaseException:  # a cancellation, too: the port is given back
            bound.close()
            raise
        port = bound.getsockname()[1]
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 -- the user's choice
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/metrics"
        if wanted and port != wanted:
            log.warning("the port for metrics is taken; another one is used", action="metrics.port_taken", url=self.url)
        log.info("metrics", action="metrics.listening", url=self.url)

    def _bind(self, host: str, wanted: int) -> socket.socket:
        try:
            try:
                return _listening(host, wanted)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return _listening(host, 0)
        except (OSError, OverflowError) as error:
            raise SetupError(
                f"PERDURE_METRICS_HOST {host!r} with PERDURE_METRICS_PORT {wanted} is no address of this machine to "
                f"listen on: {error}. Use 127.0.0.1, or 0.0.0.0 for all; or leave PERDURE_METRICS_PORT empty"
            ) from error

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _tell(self, _request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415 -- loaded by now

        return web.Response(body=await render(self._metrics), headers={"Content-Type": TEXT})

    async def _alive(self, _request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415 -- loaded by now

        return web.json_response({"status": "ok"})

    async def _can_work(self, _request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415 -- loaded by now

        report = await self._health()
        status = report["status"] if self._ready() else "critical"
        # What the checks say in words may name servers: nobody has shown a key here.
        checks = {name: each["status"] for name, each in report["checks"].items()}
        return web.json_response({"status": status, "checks": checks}, status=503 if status == "critical" else 200)


def _load_web() -> Any:
    from aiohttp import web  # noqa: PLC0415 -- takes a while, and only processes that show metrics need it

    return web


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket. No `SO_REUSEPORT`: two processes must not share a port for metrics."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(64)
        made.setblocking(False)
    except BaseException:  # whatever it is, the socket does not stay open
        made.close()
        raise
    return made
