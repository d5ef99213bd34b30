"""How long calls took and what they used, as histograms that cost a microsecond a call.

The SDK's own take eight for each value, most of it for attributes that are the same as those of the call before.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmdo.backends.telemetry import conventions as names
from llmdo.backends.usage import Usage

# Lines may name any model; what exceeds this many kinds of calls is counted together.
_MOST_KINDS = 1_000


class CallKind(NamedTuple):
    """What calls are told apart by. ``answered_by``: the model as its answers name it; ``error``: its class."""

    provider: str
    model: str
    operation: str
    answered_by: str | None = None
    error: str | None = None

    @property
    def attributes(self) -> names.Attributes:
        """As the conventions name them."""
        found = {names.OPERATION: self.operation, names.PROVIDER_NAME: self.provider, names.REQUEST_MODEL: self.model}
        found |= {names.RESPONSE_MODEL: self.answered_by} if self.answered_by else {}
        return found | ({names.ERROR_TYPE: self.error} if self.error else {})


_OTHERS = CallKind("_OTHER", "_OTHER", "_OTHER")


@dataclass(slots=True)
class Spread:
    """A histogram: ``counts`` by bound, and of what exceeds the last one."""

    counts: list[int]
    total: float = 0.0
    least: float = float("inf")
    most: float = 0.0

    def add(self, bounds: Sequence[float], value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)

    def __add__(self, other: Spread) -> Spread:
        counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        most = max(self.most, other.most)
        return Spread(counts, self.total + other.total, min(self.least, other.least), most)


@dataclass(slots=True)
class Measured:
    """The calls of one kind."""

    seconds: Spread = field(default_factory=lambda: Spread([0] * (len(names.DURATION_BUCKETS) + 1)))
    input_tokens: Spread = field(default_factory=lambda: Spread([0] * (len(names.TOKENS_BUCKETS) + 1)))
    output_tokens: Spread = field(default_factory=lambda: Spread([0] * (len(names.TOKENS_BUCKETS) + 1)))


class CallMeasures:
    """The calls of this process, by kind. Thread-safe."""

    def __init__(self) -> None:
        self.since = time.time_ns()
        self._found: dict[CallKind, Measured] = {}
        self._lock = threading.Lock()

    def add(self, kind: CallKind, took_s: float, usage: Usage | None) -> None:
        """Counts a call."""
        with self._lock:
            found = self._found.get(kind) or self._new(kind)
            found.seconds.add(names.DURATION_BUCKETS, took_s)
            if usage is not None:
                if usage.input_tokens:
                    found.input_tokens.add(names.TOKENS_BUCKETS, usage.input_tokens)
                if usage.output_tokens:
                    found.output_tokens.add(names.TOKENS_BUCKETS, usage.output_tokens)

    def taken(self, *, anew: bool = False) -> tuple[int, dict[CallKind, Measured]]:
        """Since when, in Unix nanoseconds, and what was counted; ``anew``: counts from nothing after it.

        Counts go on in what is returned, unless ``anew``: a reader may see a call in one of its numbers and not yet in
        another.
        """
        with self._lock:
            since, found = self.since, dict(self._found)
            if anew:
                self.since, self._found = time.time_ns(), {}
            return since, found

    def _new(self, kind: CallKind) -> Measured:
        kind = kind if len(self._found) < _MOST_KINDS else _OTHERS
        return self._found.setdefault(kind, Measured())
