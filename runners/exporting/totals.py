"""What a command has done over all its pipelines, as figures that are exported: by /metrics, and by OpenTelemetry."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmdo.backends.engine.registry import retries_by_error
from llmdo.runners.exporting.oldest_message import OldestMessage
from llmdo.runners.showing.progress import Figures, Meters
from llmdo.transforms.run_state import RunState


@dataclass(frozen=True, slots=True)
class Exported:
    """What is exported.

    Attributes:
        name: Prometheus's, without ``llmdo_``; ``dotted``: OpenTelemetry's, without ``llmdo.``.
        label: what its samples differ by, if anything.
        unit: as OpenTelemetry writes it (UCUM).
        counter: whether it only grows.
    """

    name: str
    help: str
    label: str = ""
    counter: bool = True
    dotted: str = ""
    unit: str = "1"


FIGURES = (
    Exported("lines", "Lines, or messages of chats, by outcome.", "outcome", unit="{line}"),
    Exported("files", "Files, by outcome.", "outcome", unit="{file}"),
    Exported("calls", "Calls of models, also tries that failed.", unit="{call}"),
    Exported("retries", "Calls that were tried again, by the error of the first.", "error", unit="{call}"),
    Exported("tokens", "Tokens that calls used, by direction.", "direction", unit="{token}"),
    Exported(
        "cost_usd",
        "US dollars at list prices that calls cost; a lower bound where a price is unknown.",
        dotted="cost",
        unit="{USD}",
    ),
    Exported("restarts", "Pipelines that were started after the first.", unit="{restart}"),
    Exported("files_open", "Files in work.", counter=False, dotted="files.open", unit="{file}"),
    Exported("calls_in_flight", "Calls under way.", counter=False, dotted="calls.in_flight", unit="{call}"),
    Exported("window", "Calls that may be under way.", counter=False, unit="{call}"),
    Exported(
        "batched_requests",
        "Requests that wait in batches of the provider.",
        counter=False,
        dotted="requests.batched",
        unit="{request}",
    ),
    Exported(
        "queue_backlog",
        "Messages in the queue, about, as the last pull said.",
        counter=False,
        dotted="queue.backlog",
        unit="{message}",
    ),
    Exported(
        "queue_oldest_message_age_seconds",
        "Age of the oldest message in the queue, in seconds; 0 for an empty queue.",
        counter=False,
        dotted="queue.oldest_message.age",
        unit="s",
    ),
    Exported(
        "budget_left_usd",
        "What of --max-cost is left, in US dollars.",
        counter=False,
        dotted="budget.left",
        unit="{USD}",
    ),
    Exported(
        "output_budget_left_usd",
        "What of --budget is neither spent, leased nor reserved in its period, in US dollars.",
        counter=False,
        dotted="output.budget.left",
        unit="{USD}",
    ),
    Exported(
        "output_budget_left_tokens",
        "The same, of a --budget in tokens.",
        counter=False,
        dotted="output.budget.left_tokens",
        unit="{token}",
    ),
    Exported(
        "throttled_seconds",
        "Seconds in which a call was ready and limits held it back.",
        dotted="throttled",
        unit="s",
    ),
)


# Counters are there before the first is counted: nobody could tell the growth of one that was not there before.
_NOTHING = {
    **dict.fromkeys([("lines", "answered"), ("lines", "failed"), ("files", "done"), ("files", "stale")], 0.0),
    **dict.fromkeys([("tokens", "input"), ("tokens", "output")], 0.0),
    **dict.fromkeys([(name, "") for name in ("calls", "cost_usd", "restarts", "throttled_seconds")], 0.0),
}


@dataclass
class Totals:
    """What a command has done, over all its pipelines. Thread-safe."""

    started: float = field(default_factory=time.time)
    _state: RunState | None = None
    _meters: Meters = field(default_factory=Meters)
    _before: Counter[tuple[str, str]] = field(default_factory=Counter)
    _pipelines: int = 0
    _earlier_usd: float = 0.0
    _oldest: OldestMessage | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def of(self, state: RunState) -> Iterator[None]:
        """Counts a pipeline's figures until the context ends, and keeps them after that."""
        with self._lock:
            self._state, self._meters = state, Meters()
            self._oldest = OldestMessage(state.queue) if state.queue else None
            self._pipelines += 1
            self._earlier_usd = self._meters.look(state).cost_usd or 0.0  # one budget is that of all pipelines
        try:
            yield
        finally:
            with self._lock:
                self._before += self._counts(state, self._meters.look(state))
                self._state = None

    @property
    def alive(self) -> bool:
        """Whether the run may still do its work."""
        state = self._state
        return state is None or state.asleep() is None

    @property
    def ready(self) -> bool:
        """Whether a pipeline answers."""
        state = self._state
        return state is not None and not state.stopping and not state.failing

    def samples(self) -> dict[tuple[str, str], float]:
        """Values by name and label."""
        with self._lock:
            state, counted = self._state, Counter(self._before)
            counted["restarts", ""] = max(0, self._pipelines - 1)
            if state is None:
                return {**_NOTHING, **counted}
            now = self._meters.look(state)
            counted += self._counts(state, now)
            oldest = self._oldest
        gauges = {(name, ""): float(value) for name, value in _gauges(state, now)}
        age = oldest.age() if oldest else None
        if age is not None:
            gauges["queue_oldest_message_age_seconds", ""] = age
        return {**_NOTHING, **counted, **gauges}

    def _counts(self, state: RunState, now: Figures) -> Counter[tuple[str, str]]:
        counts = state.counts
        found: Counter[tuple[str, str]] = Counter(
            {
                ("lines", "answered"): counts.answered,
                ("lines", "failed"): counts.failed,
                ("files", "done"): counts.files_done,
                ("files", "stale"): counts.files_stale,
                ("calls", ""): now.calls,
                ("tokens", "input"): counts.input_tokens,
                ("tokens", "output"): counts.output_tokens,
                # A Counter adds floats as well.
                ("cost_usd", ""): (now.cost_usd or 0.0) - self._earlier_usd,
                ("throttled_seconds", ""): now.throttled_s,
            }
        )
        found.update({("retries", error): count for error, count in retries_by_error(state.run_id).items()})
        return found


def _gauges(state: RunState, now: Figures) -> Iterator[tuple[str, float]]:
    """What is so at this moment, as far as it is known."""
    yield "files_open", now.files_open
    yield "calls_in_flight", now.in_flight
    yield "window", now.window
    yield "batched_requests", now.batched
    if now.waiting is not None:
        yield "queue_backlog", now.waiting
    limit = state.budget.max_cost_usd if state.budget else None
    if limit is not None:
        yield "budget_left_usd", max(0.0, limit - (now.cost_usd or 0.0))
    if state.output_budget is not None:
        unit = "tokens" if state.output_budget.budget.usd is None else "usd"
        yield f"output_budget_left_{unit}", state.output_budget.left
