"""A span for each file: from when the run opened it to when it was settled."""

from __future__ import annotations

import time

from llmdo.backends.telemetry import conventions as names
from llmdo.backends.telemetry.switch import telemetry
from llmdo.transforms.elements import Settled


def export_span(run_id: str, settled: Settled) -> None:
    """Exports the span of a file that is done or stale, where telemetry is on.

    It is made now, by whichever process settles the file; calls that ended before know its names already. A file that
    was done before has none.
    """
    to, file = telemetry(), settled.file
    if to is None or to.tracer is None or (not file.opened_at and settled.status == "done"):
        return
    from opentelemetry.trace import Link  # noqa: PLC0415  only where it is switched on

    now = time.time_ns()
    about: names.Attributes = {
        names.RUN: run_id,
        names.FILE: file.place,
        names.FILE_VERSION: file.etag,
        names.FILE_SIZE: file.size,
        names.OUTCOME: settled.status,
        names.LINES_ANSWERED: settled.answered,
        names.LINES_FAILED: settled.failed,
        **({} if settled.cost.usd is None else {names.COST: settled.cost.usd}),
    }
    start = int(file.opened_at * 1e9) or now
    if to.exporting is None:
        to.tracer.start_span("llmdo file", attributes=about, start_time=start).end(now)
        return
    from llmdo.backends.telemetry.spans import context_of  # noqa: PLC0415

    with to.exporting.ids.given(context_of(run_id, file.id)):
        span = to.tracer.start_span("llmdo file", attributes=about, links=[Link(context_of(run_id))], start_time=start)
    span.end(now)
