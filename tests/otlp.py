"""A receiver of OTLP over HTTP, as a collector is: what it was sent, decoded by the protocol's own definitions."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Sent:
    """A span as it arrived; ids in hex."""

    service: str
    instance: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    failed: bool
    said: str
    begin: int
    end: int


@dataclass
class Collector:
    """`async with Collector() as collector:` listens at `collector.url` on a free port; `spans` holds what came."""

    spans: list[Sent] = field(default_factory=list)
    status: int = 200
    requests: int = 0
    url: str = ""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64_000_000)
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
            ExportTraceServiceResponse,
        )

        self.requests += 1
        if self.status != 200:
            return web.Response(status=self.status)
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for resource in message.resource_spans:
            about = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_sent(span, about) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    def named(self, name: str) -> list[Sent]:
        """The spans of a name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.begin)

    def one(self, name: str) -> Sent:
        """The only span of a name."""
        (span,) = self.named(name)
        return span

    def whole(self, roots: set[str]) -> bool:
        """Whether the parent of each span is there, but for those in `roots`."""
        return {span.parent for span in self.spans} <= roots | {span.id for span in self.spans}

    def tree(self, root: str) -> dict[str, Any]:
        """Names below the span with id `root`, by name; those that came twice are there once."""
        below: dict[str, Any] = {}
        for span in self.spans:
            if span.parent == root:
                below.setdefault(span.name, {}).update(self.tree(span.id))
        return below


def _sent(span: Any, about: dict[str, Any]) -> Sent:
    return Sent(
        service=about["service.name"],
        instance=about["service.instance.id"],
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_attributes(span.attributes),
        failed=span.status.code == 2,
        said=span.status.message,
        begin=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
