"""An OpenTelemetry collector: takes spans by HTTP and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What it was sent, with the process that each span came from; `endpoint` is where it listens."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._spans: list[tuple[int, Span]] = []

    def take(self, request: ExportTraceServiceRequest) -> None:
        for sent in request.resource_spans:
            pid = next(one.value.int_value for one in sent.resource.attributes if one.key == "process.pid")
            self._spans.extend((pid, span) for scope in sent.scope_spans for span in scope.spans)

    def blocks(self) -> list[Span]:
        """Spans of blocks, in their order."""
        found = [span for _, span in self._spans if span.name == "block"]
        return sorted(found, key=lambda span: attribute(span, "longtake.block"))

    def stages(self, block: Span) -> dict[str, Span]:
        """Those below a block's, by their names."""
        return {
            span.name: span
            for _, span in self._spans
            if span.trace_id == block.trace_id and span.parent_span_id == block.span_id
        }

    def processes(self, name: str) -> set[int]:
        """Whence spans of a name came."""
        return {pid for pid, span in self._spans if span.name == name}


@contextmanager
def collecting() -> Iterator[Collector]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            collector.take(ExportTraceServiceRequest.FromString(plain))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def attribute(span: Span, name: str) -> int:
    return next(one.value.int_value for one in span.attributes if one.key == name)
