"""The OpenTelemetry exporter that the environment sets, by OpenTelemetry's own variables."""

from __future__ import annotations

import os
import socket
from importlib import import_module

from engines.config.validation import require
from serving.tracing.tracer import UNTRACED, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
PACKAGE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def endpoint() -> str | None:
    """Where spans are to go; None where no exporter is set, or OTEL_TRACES_EXPORTER is none."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return _first(ENDPOINTS)


def check_exporter() -> None:
    """Raise ConfigError, with the remedy, where an exporter is set that cannot be had."""
    if (where := endpoint()) is None:
        return
    remedy = "or set OTEL_TRACES_EXPORTER=none"
    protocol = _first(PROTOCOLS) or PROTOCOL
    problem = (
        f"spans are sent by {PROTOCOL} only, and $OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; change it, {remedy}"
    )
    require(protocol == PROTOCOL, problem)
    problem = (
        f"spans are to be sent to {where}, and their exporter is not installed; run `pip install 'longtake[otel]'`"
    )
    require(_is_installed(), f"{problem}, {remedy}")


def exporting_tracer() -> Tracer:
    """What takes the spans of this process, and sends them on. Raises ConfigError as `check_exporter`."""
    check_exporter()
    if endpoint() is None:
        return UNTRACED
    # Here, not above: who sets no exporter does without all of it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from serving.tracing.opentelemetry_tracer import OpenTelemetryTracer

    name = os.environ.get("OTEL_SERVICE_NAME", "longtake")
    process = Resource.create(
        {"service.name": name, "host.name": socket.gethostname(), "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=process)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


def _first(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _is_installed() -> bool:
    """With all that it needs itself."""
    try:
        import_module(PACKAGE)
    except ModuleNotFoundError:
        return False
    return True
