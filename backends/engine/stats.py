"""What an engine has done so far."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmdo.backends.engine.turns import Turns
from llmdo.backends.usage import Usage

# Upper bounds, in seconds, of the classes that latencies are counted in; a last class has what took longer.
LATENCY_BOUNDS_S: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


@dataclass(slots=True)
class Latencies:
    """Of calls, the waits for their turn left out; ``classes`` are counts by LATENCY_BOUNDS_S."""

    sum_s: float = 0.0
    most_s: float = 0.0
    classes: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))

    def add(self, seconds: float) -> None:
        """Counts a call."""
        self.sum_s += seconds
        self.most_s = max(self.most_s, seconds)
        self.classes[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done so far.

    Attributes:
        calls: calls started, retries and the parts of split arrays included; ``calls_by_model``: by full name.
        in_flight: calls running now; ``most_in_flight``: the most there ever were.
        batched: requests that wait in batches, or to be handed over in one; they are not in flight.
        succeeded: deliveries with a response, each text of an array counted; ``failed``: those with an error.
        retries: calls that repeated a failed one; ``retried``: by the class of its error, counted when it failed.
        window: calls that may be in flight at this moment; ``windows``: by model.
        throttled_s: seconds in which a call was ready and held back by the limits of its model.
        waited_s: seconds that all calls together were.
        latency_s, most_latency_s: of all calls together, and of the longest; ``latencies``: calls by LATENCY_BOUNDS_S.
    """

    calls: int
    in_flight: int
    most_in_flight: int
    batched: int
    succeeded: int
    failed: int
    retries: int
    input_tokens: int
    output_tokens: int
    retried: Mapping[str, int]
    window: int
    throttled_s: float
    waited_s: float
    calls_by_model: Mapping[str, int]
    windows: Mapping[str, int]
    latency_s: float
    most_latency_s: float
    latencies: Sequence[int]


@dataclass(slots=True)
class Tally:
    """What the dispatcher counts; the names are those of EngineStats."""

    succeeded: int = 0
    failed: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, usage: Usage | None) -> None:
        """Counts tokens."""
        if usage:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens

    def stats(self, turns: Turns, window: int, batched: int, now: float) -> EngineStats:
        """All figures; ``window``: the engine's."""
        throttles = turns.throttles()
        held_back = [throttle.held_back_s(now) for *_, throttle in throttles]
        windows = {f"{provider}/{model}": throttle.window for provider, model, throttle in throttles}
        return EngineStats(
            calls=turns.calls,
            in_flight=turns.in_flight,
            most_in_flight=turns.most,
            batched=batched,
            succeeded=self.succeeded,
            failed=self.failed,
            retries=self.retries,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            retried=dict(self.retried),
            window=min(window, sum(windows.values())) if windows else window,
            throttled_s=max((seconds for seconds, _ in held_back), default=0.0),
            waited_s=sum(seconds for _, seconds in held_back),
            calls_by_model={f"{provider}/{model}": throttle.calls for provider, model, throttle in throttles},
            windows=windows,
            latency_s=self.latencies.sum_s,
            most_latency_s=self.latencies.most_s,
            latencies=tuple(self.latencies.classes),
        )
