"""What Infer reports to the runner, as Beam counters and distributions in the namespace ``llmdo``.

Counters: ``lines_answered``, ``lines_failed`` and ``lines_failed.<error class>``; ``answers_reused`` (from the ledger,
or from a call that lines share); ``input_tokens``, ``output_tokens``, ``cost_microdollars`` (once per call),
``lines_unpriced``; ``calls``, ``retries`` and ``retries.<error class>``; ``cumulativeThrottlingSeconds``, which tells
Dataflow's autoscaler that more workers would not help. Distributions: ``latency_ms`` of each line's last call,
``window`` (calls that may be in flight, once a second).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter

from apache_beam.metrics import Metrics

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import ModelError
from llmdo.backends.usage import Usage

METRICS_NAMESPACE = "llmdo"
_THROTTLED = "cumulativeThrottlingSeconds"  # Dataflow looks for this name, in any namespace
_EVERY_S = 1.0

# What was reported of each engine: all bundles of a process share it, and each reports what is new.
_reported: weakref.WeakKeyDictionary[Engine, Counter[str]] = weakref.WeakKeyDictionary()
_reporting = threading.Lock()


class InferMetrics:
    """The metrics of one instance of a DoFn; used on the thread of its bundle, where Beam looks for them."""

    def __init__(self) -> None:
        self._counters: dict[str, Metrics.DelegatingCounter] = {}
        self._latency = Metrics.distribution(METRICS_NAMESPACE, "latency_ms")
        self._window = Metrics.distribution(METRICS_NAMESPACE, "window")
        self._microdollars = 0.0  # the fraction that is not counted so far
        self._next = 0.0

    def answer(self, usage: Usage, usd: float | None, done: Done) -> None:
        """Counts an answered line; ``usd`` is its cost, or None if unknown."""
        self._add("lines_answered")
        self._add("input_tokens", usage.input_tokens)
        self._add("output_tokens", usage.output_tokens)
        if usd is None:
            self._add("lines_unpriced")
        else:
            self._microdollars += usd * 1e6
            whole = int(self._microdollars)
            self._microdollars -= whole
            self._add("cost_microdollars", whole)
        if done.attempts:
            self._latency.update(round(done.latency_s * 1000))
        else:
            self._add("answers_reused")

    def failure(self, error: ModelError) -> None:
        """Counts a line without an answer."""
        self._add("lines_failed")
        self._add(f"lines_failed.{type(error).__name__}")

    def engine(self, engine: Engine, *, now: bool = False) -> None:
        """Counts what the engine has done since the last report; at most once a second, unless ``now``."""
        at = time.monotonic()
        if at < self._next and not now:
            return
        self._next = at + _EVERY_S
        stats = engine.stats()
        done = Counter({"calls": stats.calls, "retries": stats.retries, _THROTTLED: int(stats.throttled_s)})
        done.update({f"retries.{name}": count for name, count in stats.retried.items()})
        self._window.update(stats.window)
        with _reporting:
            new = done - _reported.get(engine, Counter())
            _reported[engine] = done
        for name, amount in new.items():
            self._add(name, amount)

    def _add(self, name: str, amount: int = 1) -> None:
        if amount:
            counter = self._counters.get(name)
            if counter is None:
                counter = self._counters[name] = Metrics.counter(METRICS_NAMESPACE, name)
            counter.inc(amount)
