"""The SDK of OpenTelemetry, set up by the environment; imported only where something is exported.

The providers are llmdo's own and not the process's: an application that sets its own later gets none of these spans.
What cannot be exported is one warning, whatever the SDK logs about it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from llmdo import __version__
from llmdo.backends.telemetry.conventions import SCHEMA_URL, SCOPE, UPTIME
from llmdo.backends.telemetry.measures import CallMeasures
from llmdo.backends.telemetry.points import as_metrics
from llmdo.backends.telemetry.spans import Ids
from llmdo.settings.secrets import without_secrets
from llmdo.settings.telemetry import is_exported, is_exported_as_deltas, sampled_part

_log = logging.getLogger(__name__)
_LOOK_S = 0.01


class _Troubles(logging.Handler):
    """Takes what the SDK and the exporters log, and logs the first of it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.failed = threading.Event()
        self._told = False

    def reset(self, *, warned: bool) -> None:
        """Warns again, or no more."""
        self._told = warned

    def emit(self, record: logging.LogRecord) -> None:
        """Logs it, and what follows at DEBUG: a run is not disturbed by what cannot be exported."""
        said = without_secrets(record.getMessage())[:500]
        if said.startswith("Exporter already shutdown"):  # its provider's last words after ``close``, at any later time
            return
        self.failed.set()
        if self._told:
            _log.debug("OpenTelemetry: %s", said)
            return
        self._told = True
        _log.warning(
            "OpenTelemetry: %s; the run goes on without it: check OTEL_EXPORTER_OTLP_ENDPOINT, or unset it", said
        )


class _MetricExporter(OTLPMetricExporter):
    """Exports the histograms of calls besides what the provider's instruments have."""

    def __init__(self, measures: CallMeasures) -> None:
        super().__init__()
        self._calls = measures

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Both, as one message."""
        deltas = is_exported_as_deltas()
        since, found = self._calls.taken(anew=deltas)
        if found:
            kind = AggregationTemporality.DELTA if deltas else AggregationTemporality.CUMULATIVE
            metrics_data = _with(metrics_data, as_metrics(since, found, kind))
        return super().export(metrics_data, timeout_millis, **kwargs)


def _with(data: MetricsData, more: list[Metric]) -> MetricsData:
    """With these in llmdo's own scope, which is always there: see UPTIME."""
    return MetricsData(
        [
            replace(
                of,
                scope_metrics=[
                    replace(one, metrics=[*one.metrics, *more]) if one.scope.name == SCOPE else one
                    for one in of.scope_metrics
                ],
            )
            for of in data.resource_metrics
        ]
    )


_troubles = _Troubles()


@dataclass(eq=False, slots=True)
class Exporting:
    """What this process exports with; a signal that is not exported has no provider."""

    spans: TracerProvider | None = None
    metrics: MeterProvider | None = None
    ids: Ids = field(default_factory=Ids)
    _exporters: list[OTLPSpanExporter | OTLPMetricExporter] = field(default_factory=list)

    @classmethod
    def by_environment(cls, measures: CallMeasures) -> Exporting:
        """By OTEL_*: addresses, headers, timeouts, sizes of batches; spans are sampled before they are made."""
        about = {"service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create(about)
        if str(resource.attributes["service.name"]).startswith("unknown_service"):  # the SDK's word for none
            resource = resource.merge(Resource({"service.name": SCOPE}))
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [_troubles], False
        found = cls()
        if is_exported("traces") and sampled_part() is not None:
            found._export_spans(OTLPSpanExporter(), resource)
        if is_exported("metrics"):
            found._export_metrics(_MetricExporter(measures), resource)
        _troubles.reset(warned=False)
        return found

    def _export_spans(self, exporter: OTLPSpanExporter, resource: Resource) -> None:
        self._exporters.append(exporter)
        self.spans = TracerProvider(ALWAYS_ON, resource, id_generator=self.ids, shutdown_on_exit=False)
        self.spans.add_span_processor(BatchSpanProcessor(exporter))

    def _export_metrics(self, exporter: OTLPMetricExporter, resource: Resource) -> None:
        self._exporters.append(exporter)
        self.metrics = MeterProvider(
            [PeriodicExportingMetricReader(exporter)],
            resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        # Of each process, so that there is something to export with the calls of one that has no figures.
        self.metrics.get_meter(SCOPE, __version__, SCHEMA_URL).create_observable_gauge(
            UPTIME, [partial(_uptime, time.monotonic())], "s", "The time the process has been running."
        )

    def flush(self, seconds: float) -> None:
        """See ``flush_telemetry``."""
        self._all_within(seconds, [one.force_flush for one in (self.spans, self.metrics) if one is not None])

    def close(self) -> None:
        """Exports nothing more, and nothing is tried again."""
        _troubles.reset(warned=True)
        for exporter in self._exporters:
            exporter.shutdown()
        self._all_within(1.0, [one.shutdown for one in (self.spans, self.metrics) if one is not None])

    def _all_within(self, seconds: float, tasks: list[Callable[[], object]]) -> None:
        """Neither the SDK's flush nor its shutdown keeps to a time."""
        _troubles.failed.clear()
        threads = [threading.Thread(target=task, name="llmdo-flush", daemon=True) for task in tasks]
        end = time.monotonic() + seconds
        with suppress(RuntimeError):  # the interpreter is about to exit, and starts no thread
            for thread in threads:
                thread.start()
        while any(one.is_alive() for one in threads) and not _troubles.failed.is_set() and time.monotonic() < end:
            time.sleep(_LOOK_S)


def _uptime(since: float, _: CallbackOptions) -> Iterator[Observation]:
    yield Observation(time.monotonic() - since)
