"""Which spans belong together: names for a run's and a file's spans that any process of the run can compute.

A run has a span, and so has a file, as the first of a trace of its own with a link to the run's: a trace of a stream of
days could not be looked at. Calls are in the trace of their file, whichever process makes them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

if TYPE_CHECKING:
    from opentelemetry.context import Context


class Ids(RandomIdGenerator):
    """Random names, but for a span that is started within ``given``."""

    def __init__(self) -> None:
        self._next = threading.local()

    @contextmanager
    def given(self, context: SpanContext) -> Iterator[None]:
        """The span that is started in this thread gets these names."""
        self._next.context = context
        try:
            yield
        finally:
            self._next.context = None

    def generate_trace_id(self) -> int:
        """As the SDK asks for it, for a span without a parent."""
        context: SpanContext | None = getattr(self._next, "context", None)
        return super().generate_trace_id() if context is None else context.trace_id

    def generate_span_id(self) -> int:
        """As the SDK asks for it."""
        context: SpanContext | None = getattr(self._next, "context", None)
        return super().generate_span_id() if context is None else context.span_id


def context_of(*names: str) -> SpanContext:
    """The names of the span of a run, or of a file in it: by the run's id, and the file's."""
    digest = hashlib.sha256("\n".join(("llmdo", *names)).encode()).digest()
    trace_id, span_id = int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def below(context: SpanContext) -> Context:
    """Where a span is started that has this one as its parent."""
    return set_span_in_context(NonRecordingSpan(context))
