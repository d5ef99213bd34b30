"""What OpenTelemetry learns of a run: its span, and its figures. Calls and files are exported where they end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from llmdo.backends.telemetry import conventions as names
from llmdo.backends.telemetry.switch import flush_telemetry, telemetry
from llmdo.pipelines.run_options import RunOptions
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.exporting.totals import FIGURES, Exported, Totals
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.run_state import RunState

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.trace import Span

_LABELS = {"outcome": names.OUTCOME, "error": names.ERROR_TYPE, "direction": names.TOKEN_TYPE}


@contextmanager
def run_span(options: RunOptions, run_id: str) -> Iterator[Callable[[Summary], Summary]]:
    """Exports the span of a pipeline, with how it ended, which the function that this yields is told.

    What waits to be exported is, at the end: bounded in time, see ``flush_telemetry``.
    """
    to = telemetry()
    if to is None or to.tracer is None:
        yield lambda summary: summary
        flush_telemetry()
        return
    about: names.Attributes = {
        names.RUN: run_id,
        names.COMMAND: options.command,
        names.RUNNER: options.runner,
        names.PROCESSES: options.processes,
    }
    start = partial(to.tracer.start_span, f"llmdo {options.command}", attributes=about, start_time=time.time_ns())
    if to.exporting is None:
        span = start()
    else:
        from llmdo.backends.telemetry.spans import context_of  # noqa: PLC0415  only where it is switched on

        with to.exporting.ids.given(context_of(run_id)):
            span = start()
    try:
        yield partial(_describe, span)
    finally:
        span.end()
        flush_telemetry()


def _describe(span: Span, summary: Summary) -> Summary:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    counts, cost = summary.counts, summary.spent.cost_usd
    outcome = "failed" if summary.problem else "unfinished" if summary.exit_code == EXIT_FAILED else "done"
    span.set_attributes(
        {
            names.OUTCOME: outcome,
            names.LINES_ANSWERED: counts.answered,
            names.LINES_FAILED: counts.failed,
            names.FILES_DONE: counts.files_done,
            names.FILES_STALE: counts.files_stale,
            **({} if cost is None else {names.COST: cost}),
        }
    )
    if summary.problem:
        span.set_status(StatusCode.ERROR)  # without the sentence, which may quote a service
    return summary


@contextmanager
def figures_exported(state: RunState) -> Iterator[None]:
    """Exports a pipeline's figures until the context ends; the process counts on over all its pipelines."""
    to = telemetry()
    if to is None or to.meter is None:
        yield
        return
    with _exported_by(to.meter).of(state):
        yield


@cache
def _exported_by(meter: Meter) -> Totals:
    """The figures of this process, which a meter asks for when it exports."""
    totals = Totals()
    for figure in FIGURES:
        make = meter.create_observable_counter if figure.counter else meter.create_observable_gauge
        name = f"llmdo.{figure.dotted or figure.name}"
        make(name, [partial(_observe, totals, figure)], figure.unit, figure.help)
    return totals


def _observe(totals: Totals, figure: Exported, _: CallbackOptions) -> Iterator[Observation]:
    from opentelemetry.metrics import Observation  # noqa: PLC0415

    for (name, label), value in totals.samples().items():
        if name == figure.name:
            about: dict[str, Any] = {_LABELS[figure.label]: label} if figure.label else {}
            yield Observation(value, about)
