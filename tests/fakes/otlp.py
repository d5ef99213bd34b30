"""A receiver of OTLP on loopback, which reads what is sent by OpenTelemetry's own protobufs."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


def value_of(value: AnyValue) -> Any:
    """As Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Of a span, a point or a resource."""
    found: list[KeyValue] = list(pairs)
    return {one.key: value_of(one.value) for one in found}


@dataclass(eq=False)
class Receiver:
    """``spans`` and ``metrics`` as they came, with the schema and the resource of each; ``raw``: all bodies."""

    status: int = 200
    spans: list[tuple[Span, str, dict[str, Any]]] = field(default_factory=list)
    metrics: list[tuple[Metric, str, dict[str, Any]]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.before()
                receiver.take(self.path, body, dict(self.headers))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        """One request."""
        self.raw.append(body)
        self.headers.append({name.lower(): value for name, value in headers.items()})
        if path == "/v1/traces":
            for of in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in of.scope_spans:
                    about = attributes_of(of.resource.attributes)
                    self.spans += [(span, scope.schema_url, about) for span in scope.spans]
        elif path == "/v1/metrics":
            for of_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for of_scope in of_metrics.scope_metrics:
                    about = attributes_of(of_metrics.resource.attributes)
                    self.metrics += [(metric, of_scope.schema_url, about) for metric in of_scope.metrics]
        else:
            raise AssertionError(path)

    def named(self, prefix: str) -> list[tuple[Span, dict[str, Any]]]:
        """The spans whose name begins so, with their attributes."""
        return [(span, attributes_of(span.attributes)) for span, *_ in self.spans if span.name.startswith(prefix)]

    def points(self, name: str) -> list[Any]:
        """The points of a metric, as they came last from each process."""
        newest = {about["service.instance.id"]: metric for metric, _, about in self.metrics if metric.name == name}
        return [point for metric in newest.values() for point in getattr(metric, metric.WhichOneof("data")).data_points]

    def close(self) -> None:
        """Answers nobody any more."""
        self._server.shutdown()
        self._server.server_close()
