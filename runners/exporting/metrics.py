"""Serves a command's figures for Prometheus, and tells Kubernetes whether it is alive and ready.

``/metrics``, ``/healthz`` (503 once the run was frozen for so long that others may have its files) and ``/readyz`` (503
while no pipeline answers: it starts, restarts or drains; of a schedule, before it has begun).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from llmdo.backends.telemetry.conventions import DURATION_BUCKETS
from llmdo.backends.telemetry.measures import CallMeasures
from llmdo.backends.telemetry.switch import measure_calls
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exporting.scheduled import SCHEDULED, ScheduleFigures
from llmdo.runners.exporting.totals import FIGURES, Exported, Totals
from llmdo.transforms.run_state import RunState

_Watch = Callable[[RunState], AbstractContextManager[None]]
CALL_SECONDS, CALL_LABELS = "llmdo_call_seconds", ("provider", "model", "error")


class _Served(Protocol):
    """What is served."""

    @property
    def alive(self) -> bool:
        """Whether the command may still do its work."""

    @property
    def ready(self) -> bool:
        """Whether it does."""

    def samples(self) -> dict[tuple[str, str], float]:
        """Values by name and label."""


class Scraped(Collector):
    """Figures as ``prometheus_client`` asks for them, and the calls of this process if they are measured."""

    def __init__(self, served: _Served, figures: tuple[Exported, ...], calls: CallMeasures | None = None) -> None:
        self._served, self._figures, self._calls = served, figures, calls

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        samples = self._served.samples()
        for one in self._figures:
            family: Any = CounterMetricFamily if one.counter else GaugeMetricFamily
            metric = family(f"llmdo_{one.name}", one.help, labels=[one.label] if one.label else [])
            for (name, label), value in samples.items():
                if name == one.name:
                    metric.add_metric([label] if one.label else [], value)
            yield metric
        if self._calls is not None:
            yield _call_seconds(self._calls)


def _call_seconds(calls: CallMeasures) -> Metric:
    labels = ["provider", "model", "error"]
    metric = HistogramMetricFamily(
        CALL_SECONDS, "Seconds that calls took, by model and by how they failed.", labels=labels
    )
    bounds = [*map(floatToGoString, DURATION_BUCKETS), "+Inf"]
    found: dict[tuple[str, str, str], tuple[list[int], float]] = {}
    for kind, measured in calls.taken()[1].items():
        key = kind.provider, kind.model, kind.error or ""
        counts, total = found.get(key, ([0] * len(bounds), 0.0))
        counts = [one + more for one, more in zip(counts, measured.seconds.counts, strict=True)]
        found[key] = counts, total + measured.seconds.total
    for key, (counts, total) in found.items():
        so_far, buckets = 0, []
        for bound, count in zip(bounds, counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        metric.add_metric(key, buckets, total)
    return metric


@contextmanager
def serving(watch: _Watch, port: int, host: str) -> Iterator[_Watch]:
    """Serves what ``watch`` sees, in addition, until the context ends. Raises UsageError for a port that is taken."""
    totals = Totals()

    @contextmanager
    def both(state: RunState) -> Iterator[None]:
        with totals.of(state), watch(state):
            yield

    with _served_at(host, port, totals, Scraped(totals, FIGURES, measure_calls())):
        yield both


@contextmanager
def serving_schedule(port: int, host: str) -> Iterator[ScheduleFigures]:
    """Serves what a schedule reports until the context ends. Raises UsageError for a port that is taken."""
    figures = ScheduleFigures()
    with _served_at(host, port, figures, Scraped(figures, SCHEDULED)):
        yield figures


@contextmanager
def _served_at(host: str, port: int, served: _Served, collector: Scraped) -> Iterator[None]:
    server = _server(served, collector, host, port)
    threading.Thread(target=server.serve_forever, name="llmdo-metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _server(served: _Served, collector: Scraped, host: str, port: int) -> ThreadingHTTPServer:
    registry = CollectorRegistry()
    registry.register(collector)

    class Handler(BaseHTTPRequestHandler):
        """Answers the three paths."""

        def do_GET(self) -> None:
            """One of them."""
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            elif path in _PROBES:
                well = getattr(served, _PROBES[path])
                self._answer(200 if well else 503, b"ok\n" if well else b"no\n", "text/plain")
            else:
                self._answer(404, b"/metrics, /healthz or /readyz\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: probes come every few seconds."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        said = f"--metrics-port {port}: {host}:{port} cannot be listened on ({error.strerror})"
        raise UsageError([f"{said}: name a free port, or another --metrics-host"]) from None


_PROBES = {"/healthz": "alive", "/readyz": "ready"}
