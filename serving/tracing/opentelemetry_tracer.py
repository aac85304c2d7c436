"""Spans by OpenTelemetry's SDK; imported only where an exporter is set."""

from __future__ import annotations

import time

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import override

from serving.tracing.tracer import Attributes, BlockSpan, Tracer

TRACEPARENT = "traceparent"

_W3C = TraceContextTextMapPropagator()


class _RecordedBlock(BlockSpan):
    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        # The stages of a block that no sampler took would only be measured, and acknowledged, in vain.
        if span.get_span_context().trace_flags.sampled:
            _W3C.inject(carrier, set_span_in_context(span))
        self._traceparent = carrier.get(TRACEPARENT)

    @property
    @override
    def traceparent(self) -> str | None:
        return self._traceparent

    @override
    def end(self, error: str | None = None) -> None:
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()


class OpenTelemetryTracer(Tracer):
    """Gives spans to `provider`, which is not made the process's own: Serve may have one."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("longtake")

    @override
    def block(self, attributes: Attributes) -> BlockSpan:
        # Whatever span the task was begun in is not its parent.
        return _RecordedBlock(self._tracer.start_span("block", Context(), attributes=attributes))

    @override
    def stage(
        self, parent: str | None, name: str, began: float, ended: float, attributes: Attributes | None = None
    ) -> None:
        if parent is None:
            return
        context = _W3C.extract({TRACEPARENT: parent}, Context())
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=_epoch_ns(began))
        span.end(_epoch_ns(ended))


def _epoch_ns(at: float) -> int:
    """A time of `time.monotonic()` in nanoseconds since 1970."""
    return time.time_ns() - round((time.monotonic() - at) * 1e9)
