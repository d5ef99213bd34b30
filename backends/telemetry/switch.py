"""Whether this process exports spans and metrics, and to what it gives them.

It does where the environment has OTEL_* and the SDK is installed (the extra ``otel``), and where an application has set
providers of its own before its first call: those are used then, with what they sample and where they export.
"""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmdo import __version__
from llmdo.backends.telemetry.conventions import SCHEMA_URL, SCOPE
from llmdo.backends.telemetry.measures import CallMeasures
from llmdo.settings.installing import install_command
from llmdo.settings.telemetry import USUAL_RATIO, is_exported, sampled_part, telemetry_problems

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from llmdo.backends.telemetry.sdk import Exporting

_log = logging.getLogger(__name__)

# A collector that does not answer holds up the end of a run for no longer. Seconds.
FLUSH_S = 5.0


@dataclass(eq=False, slots=True)
class Telemetry:
    """Where spans and metrics go; None: they are not wanted.

    Attributes:
        ratio: the part of the calls that succeed which has a span; those that fail have one, see CallSpans.
        exporting: what this process exports with; None where an application does.
    """

    tracer: Tracer | None
    meter: Meter | None
    ratio: float = USUAL_RATIO
    exporting: Exporting | None = None


@dataclass(slots=True)
class _Process:
    """What was found out about this process."""

    found: Telemetry | None = None
    measures: CallMeasures | None = None
    problems_told: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_process = _Process()


def telemetry() -> Telemetry | None:
    """This process's, once it is switched on; None while it is off. Cheap then: nothing is imported."""
    if _process.found is None and (_from_application() or is_exported("traces") or is_exported("metrics")):
        with _process.lock:
            if _process.found is None:
                _process.found = _opened()
    return _process.found


def call_measures() -> CallMeasures | None:
    """What this process's calls are counted by; None while nobody reads it."""
    return _process.measures


def measure_calls() -> CallMeasures:
    """Counts the calls of engines that are opened from now on."""
    with _process.lock:
        _process.measures = _process.measures or CallMeasures()
        return _process.measures


def flush_telemetry(seconds: float = FLUSH_S) -> None:
    """Exports what waits, within ``seconds`` s, and no longer than until the first failure."""
    if _process.found is not None and _process.found.exporting is not None:
        _process.found.exporting.flush(seconds)


def forget_telemetry() -> None:
    """Switches it off, so that the next look at the environment counts; for tests and benchmarks."""
    found, _process.found, _process.measures, _process.problems_told = _process.found, None, None, False
    if found is not None and found.exporting is not None:
        found.exporting.close()


def _from_application() -> bool:
    """Whether a provider of spans or metrics was set in this process; looks only where the API was imported."""
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    providers = [trace and trace.get_tracer_provider(), metrics and metrics.get_meter_provider()]
    return any(one is not None and "Proxy" not in type(one).__name__ for one in providers)


def _opened() -> Telemetry | None:
    if _from_application():
        from opentelemetry import metrics, trace  # noqa: PLC0415  only where it is switched on

        return _of(trace.get_tracer_provider(), metrics.get_meter_provider())
    try:
        from llmdo.backends.telemetry.sdk import Exporting  # noqa: PLC0415  the same
    except ImportError as error:
        _tell([f"OTEL_… is set, but {error.name} is not installed: unset it, or run {install_command('[otel]')}"])
        return None
    _tell(telemetry_problems())
    _process.measures = _process.measures or CallMeasures()
    exporting = Exporting.by_environment(_process.measures)
    return _of(exporting.spans, exporting.metrics, exporting)


def _of(spans: TracerProvider | None, metrics: MeterProvider | None, exporting: Exporting | None = None) -> Telemetry:
    ratio = sampled_part()
    return Telemetry(
        spans.get_tracer(SCOPE, __version__, SCHEMA_URL) if spans is not None and ratio is not None else None,
        metrics.get_meter(SCOPE, __version__, SCHEMA_URL) if metrics is not None else None,
        ratio or 0.0,
        exporting,
    )


def _tell(problems: list[str]) -> None:
    if not _process.problems_told:
        _process.problems_told = True
        for problem in problems:
            _log.warning("OpenTelemetry: %s", problem)
