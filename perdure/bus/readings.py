"""What every service counts: its health, its endpoints, its connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from perdure.observe.metrics import Reading, Total

if TYPE_CHECKING:
    from perdure.bus.service import Service

_RANK: Final = {"ok": 0, "warning": 1, "critical": 2}


class Readings:
    """Reads one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def read(self) -> Iterator[Reading]:
        """The readings of now."""
        service = self._service
        yield "perdure_process_info", (service.name, service.version), 1
        yield "perdure_ready", (), int(service.ready)
        yield "perdure_event_loop_lag_seconds", (), service.lag.worst
        for name, found in service.health.last()["checks"].items():
            yield "perdure_health_status", (name,), _RANK[found["status"]]
        yield from self._connections()
        for endpoint in service.endpoints:
            labels = (endpoint.name,)
            yield "perdure_nats_requests_total", labels, endpoint.requests
            yield "perdure_nats_requests_open", labels, endpoint.open_requests
            yield "perdure_nats_requests_waiting", labels, endpoint.waiting_requests
            yield "perdure_nats_request_seconds", labels, Total(endpoint.handled, endpoint.processing_time / 1e9)
            for code, count in endpoint.error_codes.items():
                yield "perdure_nats_request_errors_total", (endpoint.name, code), count

    def _connections(self) -> Iterator[Reading]:
        service = self._service
        if hasattr(service, "nats"):
            yield "perdure_nats_connected", (), int(service.nats.is_connected)
            yield "perdure_nats_reconnects_total", (), service.nats.stats["reconnects"]
        if hasattr(service, "pool"):
            size, idle = service.pool.get_size(), service.pool.get_idle_size()
            yield "perdure_postgres_connections", ("used",), size - idle
            yield "perdure_postgres_connections", ("idle",), idle
            yield "perdure_postgres_connections_limit", (), service.pool.get_max_size()
