"""What is measured of each call, and the spans of some."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmdo.backends.errors import ModelError
from llmdo.backends.requests import EmbedRequest, LineId, Request
from llmdo.backends.responses import Response
from llmdo.backends.telemetry import conventions as names
from llmdo.backends.telemetry.measures import CallKind, CallMeasures
from llmdo.backends.telemetry.switch import Telemetry, call_measures, telemetry
from llmdo.backends.usage import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Link, Tracer

# Spans of calls that fail, a second: a service that refuses everything would else fill the SDK's queue.
MOST_FAILED_PER_S = 100
_MOST_LINKS = 16  # files that the texts of one array may come from


@dataclass(slots=True)
class CallEnded:
    """A call, when it has ended.

    Attributes:
        line_ids: of the lines that it is for.
        took_s: seconds until the service had answered, or failed.
        number: which try of its request it was, from 1.
        ended: the answer, or the error.
    """

    provider: str
    request: Request
    line_ids: Iterable[str]
    took_s: float
    number: int
    ended: Response | BaseException


class CallTelemetry:
    """Measures each call of an engine, and makes the spans of a part of them and of those that fail.

    A span is made when its call has ended: one that is not sampled costs a random number.

    Args:
        to: where spans go, and what an application measures with; None: nowhere.
        measures: counts the calls; None: nobody reads it.
        run_id: whose calls they are.
        chance: samples.
    """

    def __init__(
        self,
        to: Telemetry | None,
        measures: CallMeasures | None,
        run_id: str | None,
        chance: random.Random | None = None,
    ) -> None:
        self._to, self._measures, self._run_id = to, measures, run_id
        self._chance = chance or random.Random()  # noqa: S311  samples, guards nothing
        self._failed_in, self._failed = 0.0, 0
        self._tracer = to.tracer if to else None
        self._ratio = to.ratio if to else 0.0
        self._instruments = _Instruments(to.meter) if to and to.meter and not to.exporting else None

    @classmethod
    def of(cls, run_id: str | None) -> CallTelemetry | None:
        """For a run's engine; None where nobody wants to know."""
        to, measures = telemetry(), call_measures()
        return cls(to, measures, run_id) if to or measures else None

    def __call__(self, call: CallEnded) -> None:
        """A call has ended."""
        ended = call.ended
        failed = isinstance(ended, BaseException)
        if self._measures or self._instruments:
            kind = CallKind(
                call.provider,
                call.request.model,
                names.operation_name(call.request),
                None if isinstance(ended, BaseException) else ended.model,
                names.error_type(ended) if isinstance(ended, BaseException) else None,
            )
            usage = None if failed and not isinstance(ended, ModelError) else ended.usage  # type: ignore[union-attr]
            if self._measures:
                self._measures.add(kind, call.took_s, usage)
            if self._instruments:
                self._instruments.record(kind, call.took_s, usage)
        tracer = self._tracer
        if tracer is not None and (self._may_fail() if failed else self._chance.random() < self._ratio):
            self._make_span(tracer, call)

    def _may_fail(self) -> bool:
        now = time.monotonic()
        if now - self._failed_in >= 1.0:
            self._failed_in, self._failed = now, 0
        self._failed += 1
        return self._failed <= MOST_FAILED_PER_S

    def _make_span(self, tracer: Tracer, call: CallEnded) -> None:
        from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415  only where it is switched on

        operation, now = names.operation_name(call.request), time.time_ns()
        parent, links, about = self._place(call)
        span = tracer.start_span(
            f"{operation} {call.request.model}",
            parent,
            SpanKind.INTERNAL if call.provider == "local" else SpanKind.CLIENT,
            {
                names.OPERATION: operation,
                names.PROVIDER_NAME: call.provider,
                names.REQUEST_MODEL: call.request.model,
                **names.asked(call.request),
                **about,
            },
            links,
            start_time=now - int(call.took_s * 1e9),
        )
        if isinstance(call.ended, BaseException):
            span.set_attributes(names.refused(call.ended))
            span.set_status(StatusCode.ERROR)
        else:
            span.set_attributes(names.answered(call.ended))
        span.end(now)

    def _place(self, call: CallEnded) -> tuple[Context | None, list[Link], dict[str, Any]]:
        """The parent of a call's span, its links, and what it says of run, file and line."""
        about: dict[str, Any] = {names.TRY: call.number}
        if not self._run_id:
            return None, [], about
        about[names.RUN] = self._run_id
        lines = [one for one in call.line_ids if isinstance(one, LineId)]
        files = list(dict.fromkeys((line.place, line.version) for line in lines))
        if len(files) == 1:
            (about[names.FILE], about[names.FILE_VERSION]), about[names.LINE_OFFSET] = files[0], lines[0].start
        if self._to is None or self._to.exporting is None:  # an application's spans have names that nobody can compute
            return None, [], about
        from opentelemetry.trace import Link  # noqa: PLC0415

        from llmdo.backends.telemetry.spans import below, context_of  # noqa: PLC0415

        contexts = [context_of(self._run_id, f"{place}@{version}") for place, version in files[:_MOST_LINKS]]
        if len(contexts) == 1:
            return below(contexts[0]), [], about
        return None, [Link(one) for one in contexts or [context_of(self._run_id)]], about


def lines_of(request: Request) -> tuple[str, ...]:
    """The ids of the lines that a request is for."""
    return request.line_ids if isinstance(request, EmbedRequest) else (request.request_id,)


class _Instruments:
    """The histograms of an application's own provider."""

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            names.DURATION,
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=names.DURATION_BUCKETS,
        )
        self._tokens = meter.create_histogram(
            names.TOKENS_USED,
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=names.TOKENS_BUCKETS,
        )

    def record(self, kind: CallKind, took_s: float, usage: Usage | None) -> None:
        """A call."""
        about = kind.attributes
        self._duration.record(took_s, about)
        about.pop(names.ERROR_TYPE, None)
        for which, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)) if usage else ():
            if tokens:
                self._tokens.record(tokens, {**about, names.TOKEN_TYPE: which})
