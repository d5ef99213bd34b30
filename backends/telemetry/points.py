"""The histograms of calls as the SDK's exporters take them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.metrics.export import AggregationTemporality, Histogram, HistogramDataPoint, Metric

from llmdo.backends.telemetry import conventions as names
from llmdo.backends.telemetry.measures import CallKind, Measured, Spread


def as_metrics(since: int, found: Mapping[CallKind, Measured], kind: AggregationTemporality) -> list[Metric]:
    """What was counted since a moment, in Unix nanoseconds."""
    now = time.time_ns()

    def point(about: names.Attributes, of: Spread, bounds: Sequence[float]) -> HistogramDataPoint:
        counts = tuple(of.counts)
        return HistogramDataPoint(about, since, now, sum(counts), of.total, counts, bounds, of.least, of.most)

    seconds = [point(calls.attributes, measured.seconds, names.DURATION_BUCKETS) for calls, measured in found.items()]
    by_type: dict[tuple[CallKind, str], Spread] = {}
    for calls, measured in found.items():
        for which, one in (("input", measured.input_tokens), ("output", measured.output_tokens)):
            if one.most:  # of calls that failed in any way, together
                key = calls._replace(error=None), which
                by_type[key] = by_type[key] + one if key in by_type else one
    tokens = [
        point({**calls.attributes, names.TOKEN_TYPE: which}, one, names.TOKENS_BUCKETS)
        for (calls, which), one in by_type.items()
    ]
    return [
        Metric(names.DURATION, "GenAI operation duration.", "s", Histogram(seconds, kind)),
        Metric(names.TOKENS_USED, "Number of input and output tokens used.", "{token}", Histogram(tokens, kind)),
    ]
