"""The spans of Perdure, by OpenTelemetry: all names and attributes stand here. Loaded only when traces are wanted.

A run is one span, from its first claim to its end, whichever processes it was in: its id is derived from the run's, so
that each of them can be the parent of its steps, and the last one sends it. A claim is a span of its own, linked to the
one before. Texts of tasks, prompts, arguments and results are in no span.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from perdure.observe.masking import mask_text

T = TypeVar("T")
LONGEST: Final = 300  # characters of an error's text

_ids: ContextVar[tuple[int | None, int] | None] = ContextVar("perdure_trace_ids", default=None)
_run: ContextVar[RunTrace | None] = ContextVar("perdure_run_trace", default=None)


class _Ids(RandomIdGenerator):
    """Random ids, but for spans whose ids are derived."""

    def generate_span_id(self) -> int:
        given = _ids.get()
        return super().generate_span_id() if given is None else given[1]

    def generate_trace_id(self) -> int:
        given = _ids.get()
        return super().generate_trace_id() if given is None or given[0] is None else given[0]


def _derived(*parts: object, size: int) -> int:
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:size]) or 1


def current() -> str | None:
    """The `traceparent` of the span that is open here."""
    return _header(trace.get_current_span().get_span_context())


def _header(context: SpanContext) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def _parsed(header: str) -> SpanContext:
    """Of a header that `tracing.told` has let through."""
    _, trace_id, span_id, flags = header.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16) & 1))


def _within(context: SpanContext) -> otel_context.Context:
    return trace.set_span_in_context(NonRecordingSpan(context))


class Traces:
    """Sends the spans of one service; what cannot be sent is dropped, and nobody waits for it.

    `endpoint` is that of the settings; the other variables of OpenTelemetry (`OTEL_*`) are read by its SDK.
    """

    def __init__(self, endpoint: str | None, *, service: str, instance: str, version: str) -> None:
        said = {"service.instance.id": instance, "service.version": version}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            said["service.name"] = service
        self._provider = TracerProvider(resource=Resource.create({**said}), id_generator=_Ids(), shutdown_on_exit=False)
        url = None  # the exporter reads OTEL_EXPORTER_OTLP_TRACES_ENDPOINT itself
        if endpoint and not os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            url = f"{endpoint.rstrip('/')}/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self.tracer = self._provider.get_tracer("perdure", version)

    def close(self) -> threading.Event:
        """Send what waits and stop, in a thread that keeps nobody alive; the event says when it is done."""
        done = threading.Event()

        def work() -> None:
            try:
                self._provider.shutdown()
            finally:
                done.set()

        threading.Thread(target=work, name="perdure-traces", daemon=True).start()
        return done

    def of_run(self, **said: Any) -> RunTrace:
        """The spans of a claimed run; `said` is what `RunTrace` takes."""
        return RunTrace(self, **said)

    def sampled(self, trace_id: int, name: str) -> bool:
        """Whether a trace that begins with this id is sent."""
        decision = self._provider.sampler.should_sample(None, trace_id, name).decision
        return bool(decision.is_sampled())  # type: ignore[no-untyped-call]

    @contextmanager
    def served(
        self, name: str, header: str | None, attributes: Mapping[str, Any], kind: SpanKind = SpanKind.SERVER
    ) -> Iterator[Span]:
        """Within: the span of a request that came with `header`, or begins a trace."""
        parent = None if header is None else _within(_parsed(header))
        with self._open(name, parent, kind, attributes) as span:
            yield span

    @contextmanager
    def asking(self, model: str, provider: str, **attributes: Any) -> Iterator[Span]:
        """Within: a model is asked."""
        said = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
            **_about_run(),
            **{f"gen_ai.request.{key}": value for key, value in attributes.items() if value is not None},
        }
        with self._open(f"chat {model}", None, SpanKind.CLIENT, said) as span:
            yield span

    @contextmanager
    def tool(self, name: str, call_id: str) -> Iterator[Span]:
        """Within: a tool is called."""
        said = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.type": "function",
            **_about_run(),
        }
        with self._open(f"execute_tool {name}", None, SpanKind.INTERNAL, said) as span:
            yield span

    @staticmethod
    def answered(span: Span, reply: Any) -> None:
        """Put what a model said of its answer on its span."""
        span.set_attribute("gen_ai.usage.input_tokens", reply.input_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", reply.output_tokens)
        span.set_attribute("gen_ai.response.finish_reasons", [reply.stop])
        if reply.model:
            span.set_attribute("gen_ai.response.model", reply.model)
        if reply.cost is not None:
            span.set_attribute("perdure.cost", reply.cost)

    @staticmethod
    def fails(span: Span, kind: str) -> None:
        """Mark a span as failed by a word."""
        failed(span, kind)

    @contextmanager
    def _open(
        self, name: str, parent: otel_context.Context | None, kind: SpanKind, attributes: Mapping[str, Any]
    ) -> Iterator[Span]:
        span = self.tracer.start_span(name, context=parent, kind=kind, attributes=attributes)
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            yield span
        except BaseException as error:  # whatever ends the work is said in its span, and raised again
            failed(span, error)
            raise
        finally:
            otel_context.detach(token)
            span.end()

    def with_ids(self, trace_id: int | None, span_id: int, name: str, **more: Any) -> Span:
        """A span with ids of our own."""
        token = _ids.set((trace_id, span_id))
        try:
            return self.tracer.start_span(name, **more)
        finally:
            _ids.reset(token)


def failed(span: Span, error: BaseException | str) -> None:
    """Mark a span as failed; the text is masked, and there is no traceback, which may hold values."""
    kind = error if isinstance(error, str) else type(error).__name__
    text = "" if isinstance(error, str) else mask_text(str(error))[:LONGEST]
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, text or kind))


def _about_run() -> dict[str, str]:
    run = _run.get()
    return {} if run is None else run.about


class RunTrace:
    """The spans of one claimed run. `header` is what its children are started with."""

    __slots__ = (
        "_began",
        "_context",
        "_operation",
        "_parent",
        "_traces",
        "_within",
        "about",
        "header",
        "run_id",
    )

    def __init__(
        self,
        traces: Traces,
        *,
        run_id: str,
        agent: str,
        workflow: str,
        session_id: str | None,
        header: str | None,
        life: int,
        began: datetime,
        operation: str,
    ) -> None:
        self._traces = traces
        self.run_id = run_id
        self._began = began
        self._operation = operation
        self._parent = None if header is None else _parsed(header)
        if self._parent is not None:
            trace_id, flags = self._parent.trace_id, self._parent.trace_flags
        else:
            trace_id = _derived("trace", run_id, size=16)
            flags = TraceFlags(int(traces.sampled(trace_id, operation)))
        self._context = SpanContext(trace_id, _derived("run", run_id, life, size=8), is_remote=True, trace_flags=flags)
        self._within = _within(self._context)
        self.header = _header(self._context)
        self.about = {"perdure.run.id": run_id, "gen_ai.agent.name": agent, "perdure.workflow": workflow}
        if session_id is not None:
            self.about["gen_ai.conversation.id"] = session_id

    @property
    def trace_id(self) -> str:
        """In hex, as logs and Jaeger show it."""
        return f"{self._context.trace_id:032x}"

    def claimed(self, epoch: int, before: tuple[int, ...], instance: str) -> None:
        """The run was claimed. `before` are the epochs that the claim before this one may have had."""
        earlier = [
            SpanContext(
                self._context.trace_id, self._claim_id(each), is_remote=True, trace_flags=self._context.trace_flags
            )
            for each in before
        ]
        self._traces.with_ids(
            None,
            self._claim_id(epoch),
            f"claim {self.about['gen_ai.agent.name']}",
            context=self._within,
            kind=SpanKind.CONSUMER,
            links=[Link(each, {"perdure.link": "earlier claim"}) for each in earlier],
            attributes={**self.about, "perdure.run.epoch": epoch, "service.instance.id": instance},
        ).end()

    def _claim_id(self, epoch: int) -> int:
        return _derived("claim", self.run_id, epoch, size=8)

    async def step(self, name: str, path: str, attempt: int, work: Callable[[], Awaitable[T]]) -> T:
        """`await work()` in the span of one try of a step."""
        span = self._traces.tracer.start_span(
            f"step {name}",
            context=self._within,
            attributes={
                **self.about,
                "perdure.step.name": name,
                "perdure.step.path": path,
                "perdure.step.attempt": attempt,
            },
        )
        token, mine = otel_context.attach(trace.set_span_in_context(span, self._within)), _run.set(self)
        try:
            return await work()
        except BaseException as error:  # whatever ends the work is said in its span, and raised again
            failed(span, error)
            raise
        finally:
            _run.reset(mine)
            otel_context.detach(token)
            span.end()

    def ended(self, status: str) -> None:
        """The run has ended, or stopped until somebody looks: its own span is sent."""
        new_trace = self._context.trace_id if self._parent is None else None
        span = self._traces.with_ids(
            new_trace,
            self._context.span_id,
            f"{self._operation} {self.about['gen_ai.agent.name']}",
            context=otel_context.Context() if self._parent is None else _within(self._parent),
            kind=SpanKind.CONSUMER if self._parent is not None else SpanKind.INTERNAL,
            start_time=int(self._began.timestamp() * 1e9),
            attributes={**self.about, "gen_ai.operation.name": self._operation, "perdure.run.status": status},
        )
        if status != "completed":
            failed(span, status)
        span.end(max(time.time_ns(), int(self._began.timestamp() * 1e9)))
