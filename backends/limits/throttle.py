"""What holds the calls of one model back: its window, the pace learned, the rates allowed, and a pause that the service
asked for. Times are seconds of one clock, which the caller brings.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import isinf

from llmdo.backends.errors import CallTimeout, ModelError, Overloaded, Retryable
from llmdo.backends.limits import retry
from llmdo.backends.limits.breaker import Away, Breaker
from llmdo.backends.limits.call_speed import CallSpeed
from llmdo.backends.limits.calls import Started
from llmdo.backends.limits.concurrency_limit import START, ConcurrencyLimit
from llmdo.backends.limits.pace import Pace
from llmdo.backends.limits.rates import Meter, Rates, Tokens
from llmdo.backends.limits.retry import THREE_TRIES, is_throttled
from llmdo.backends.requests import Request
from llmdo.backends.responses import Response

LONGEST_REST_S = 15.0  # between tries of a service that refuses everything
# Of the mean latency, the part of the newest call; and what remains of the longest one with each further call.
_NEWEST, _FADES = 0.02, 0.995
NO_GROWTH_S = 5.0  # after a failure of the service's own, or a call without an end
CHANGES = 200  # that are remembered
WORTH_RECORDING = 1.25  # times the window that was recorded last: growth is recorded in steps


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a model's limits, for people.

    Attributes:
        at: Unix time in seconds.
        window: calls in flight from then on; ``per_s``: starts a second, None while none was learned.
        pause_s: how long nothing was started.
    """

    at: float
    window: int
    per_s: float | None
    pause_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What holds a model's calls back now, and how it came to that.

    Attributes:
        window: calls allowed in flight; ``per_s``: starts a second that were learned from refusals, None before any.
        rates: requests and tokens a minute that this process keeps to.
        calls: calls started, of which ``refused`` because the service had too many.
        throttled_s: seconds in which a call was ready, and held back by these limits.
        waited_s: seconds that all calls together waited for them.
        changes: the last CHANGES, oldest first.
        away_s: seconds in which the service did not answer, and calls paused; ``away``: the outage that lasts now.
    """

    provider: str
    model: str
    window: int
    per_s: float | None
    rates: Rates
    in_flight: int
    calls: int
    refused: int
    throttled_s: float
    waited_s: float
    changes: tuple[Change, ...]
    away_s: float = 0.0
    away: Away | None = None


class Throttle:
    """Of one model at one provider.

    Args:
        ceiling: calls in flight at most.
        rates: requests and tokens a minute.
        breaker: pauses all calls while the service is away.
        start: calls that may be in flight at first.
        longest_s: what Retry-After may ask for at most; the caller must give up a service that asks for more.
        fixed: the window is the ceiling, and nothing is learned.
    """

    def __init__(
        self,
        ceiling: int,
        rates: Rates,
        breaker: Breaker,
        start: int = START,
        longest_s: float = THREE_TRIES.deadline_s,
        *,
        fixed: bool = False,
    ) -> None:
        self.rates = rates
        self.breaker = breaker
        self._ceiling, self._start, self._longest_s = ceiling, start, longest_s
        self.in_flight = self.calls = self.refused = 0
        self._answered, self._latency_s, self._slowest_s = 0, 0.0, 0.0
        self._throttled_s = self._waited_s = 0.0
        self._fixed = fixed
        self._limit = ConcurrencyLimit(ceiling, start=start, fixed=fixed)
        self._recorded = self._limit.size
        self._pace = None if fixed else Pace()
        self._reported: float | None = None
        self._requests = _meter(rates.rpm)
        self._per_token = _meter(rates.tpm)
        self._tokens = Tokens()
        self._pause_until = self._no_growth_until = float("-inf")
        self._rests = 0  # since a call was last admitted
        self._held = 0  # ready calls
        self._looked_at = 0.0
        self.changes: deque[Change] = deque(maxlen=CHANGES)

    @property
    def window(self) -> int:
        """Calls allowed in flight."""
        return int(self._limit.size)

    @property
    def per_s(self) -> float | None:
        """Starts a second that were learned from refusals."""
        return self._pace.per_s if self._pace else None

    def pace(self) -> float | None:
        """``per_s``, to be shared out anew: ``set_share`` gets this process's part of it, and of those of others."""
        self._reported = self.per_s
        return self._reported

    def set_share(self, window: int, rates: Rates, per_s: float | None) -> None:
        """What this process may use from now on. A smaller window takes effect as calls end.

        ``per_s``: starts a second; None where no process has learned any. What was learned since ``pace`` remains.
        """
        self.rates, self._ceiling = rates, window
        if self._fixed:
            self._limit = ConcurrencyLimit(window, fixed=True)
        else:
            self._limit.cap(window)
        for meter, a_minute in ((self._requests, rates.rpm), (self._per_token, rates.tpm)):
            if meter and a_minute:
                meter.per_s = a_minute / 60
        if self._pace and per_s is not None:
            self._pace.share(per_s, self._reported)
            self._reported = per_s

    @property
    def speed(self) -> CallSpeed:
        """What is known of the calls."""
        by_tokens = self.rates.tpm and self._tokens.mean and self.rates.tpm / 60 / self._tokens.mean
        most_per_s = min(one for one in (self.per_s, self.rates.per_s, by_tokens, float("inf")) if one)
        if not self._answered:
            return CallSpeed(self.window, most_per_s=most_per_s)
        return CallSpeed(self.window, self._answered, self._latency_s, self._slowest_s, most_per_s)

    def opens_at(self) -> float:
        """From when on the next call may start; infinite while that depends on the end of another one."""
        if self.in_flight >= self.window:
            return float("inf")
        return max(self._times())

    def _times(self) -> Iterator[float]:
        yield self._pause_until
        yield self.breaker.opens_at()
        if not retry.instant():
            yield from (meter.opens_at for meter in (self._requests, self._per_token, self._pace) if meter)

    def started(self, request: Request, now: float, job: int | None = None, *, suspect: bool = False) -> Started:
        """Takes note of a call that starts now; ``job`` and ``suspect``: see Started."""
        self.in_flight += 1
        self.calls += 1
        tokens = 0.0
        if self._requests:
            self._requests.spend(1.0, now)
        if self._per_token:
            tokens = self._tokens.estimate(request)
            self._per_token.spend(tokens, now)
        index = self._pace.started(now, grows=now >= self._no_growth_until) if self._pace else 0
        call = Started(request, index, now, tokens, self.in_flight - 1, job, suspect=suspect)
        self.breaker.started(call)
        return call

    def ended(self, call: Started, response: Response | None, error: ModelError | None, now: float) -> None:
        """Takes note of a call's end."""
        full = self.in_flight >= self.window
        outage = self.breaker.away(now)
        if self.breaker.ended(call, response, error, now, self.in_flight) and outage:
            self._limit = ConcurrencyLimit(self._ceiling, start=self._start, fixed=self._fixed)
            self._record("the service answers again", outage.for_s)
        self.in_flight -= 1
        if response:
            self._measure(now - call.at)
            self._rests = 0
            self._limit.admitted(call.others, in_company=self._pace is not None and self._pace.in_company)
            if self._per_token:
                usage = response.usage
                self._tokens.measured(call.request, usage)
                self._per_token.correct(usage.input_tokens + usage.output_tokens - call.tokens)
            if full and not self._fixed and now >= self._no_growth_until:
                self._limit.grow()
                if self.window >= WORTH_RECORDING * self._recorded:
                    self._record("the window was full of calls that were answered", 0.0)
        elif isinstance(error, Retryable):
            self._failed(call, error, now)

    def _measure(self, took_s: float) -> None:
        self._answered += 1
        self._latency_s += (took_s - self._latency_s) * max(1 / self._answered, _NEWEST)
        self._slowest_s = max(took_s, self._slowest_s * _FADES)

    def look(self, held: int, now: float) -> None:
        """Takes note of how many ready calls these limits hold back from now on."""
        self._throttled_s, self._waited_s = self.held_back_s(now)
        self._held = held
        self._looked_at = now

    def held_back_s(self, now: float) -> tuple[float, float]:
        """Seconds in which a ready call was held back, and seconds that all of them together were; up to now."""
        since = now - self._looked_at if self._held else 0.0
        return self._throttled_s + since, self._waited_s + self._held * since

    def report(self, provider: str, model: str, now: float) -> ModelLimits:
        """What holds the calls back, for people."""
        throttled_s, waited_s = self.held_back_s(now)
        return ModelLimits(
            *(provider, model, self.window, self.per_s, self.rates, self.in_flight, self.calls, self.refused),
            *(throttled_s, waited_s, tuple(self.changes), self.breaker.paused_s(now), self.breaker.away(now)),
        )

    def _failed(self, call: Started, error: Retryable, now: float) -> None:
        asked = min(error.retry_after or 0.0, self._longest_s)
        if is_throttled(error):
            self.refused += 1
            if self._per_token:
                self._per_token.correct(-call.tokens)
            if self._pace and not retry.instant() and self._is_too_fast(self._pace, call, now):
                return self._cut(self._pace, error, asked, now)
        elif isinstance(error, Overloaded | CallTimeout):
            self._no_growth_until = now + NO_GROWTH_S
        if asked and not retry.instant() and now + asked > self._pause_until + 1.0:
            self._pause(now, asked)
            self._record(f"{_in_short(error)}, which asked to wait", asked)
        return None

    def _is_too_fast(self, pace: Pace, call: Started, now: float) -> bool:
        if self._limit.explains(call.others):
            return False
        too_fast = pace.refused(call.index, call.at, now)
        if too_fast and self._limit.refused(call.others):
            pace.raise_for_window()
        return too_fast

    def _cut(self, pace: Pace, error: Retryable, asked: float, now: float) -> None:
        """One for all the calls that were in flight together."""
        rest_s = pace.rest_s
        if self._rests:
            rest_s = min(max(rest_s, 0.25 * 2.0**self._rests), LONGEST_REST_S)
        self._rests += 1
        self._pause(now, max(rest_s, asked))
        self._record(_in_short(error), max(rest_s, asked))

    def _pause(self, now: float, seconds: float) -> None:
        self._pause_until = max(self._pause_until, now + seconds)
        if self._pace:
            self._pace.pause_until(self._pause_until)

    def _record(self, reason: str, pause_s: float) -> None:
        self._recorded = self._limit.size
        self.changes.append(Change(time.time(), self.window, self.per_s, pause_s, reason))


def _meter(a_minute: float | None) -> Meter | None:
    return None if a_minute is None or isinf(a_minute) else Meter(a_minute / 60)


def _in_short(error: ModelError) -> str:
    known = [f"code {error.code}"] if error.code is not None else []
    known += [f"HTTP {error.status}"] if error.status is not None else []
    return f"{type(error).__name__} ({', '.join(known)})" if known else type(error).__name__
