"""How fast calls of a model start, learned from what the service refuses.

A window alone cannot hold a service's rate: where few calls are in flight, one more is a large part of all, and every
round of growth ends in refusals. So the starts are spaced, and the rate is measured: a token bucket is empty whenever
it refuses, hence what it admitted between two refusals, divided by the time, is its rate, however deep it is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from backends.rates import SLACK_S, Meter

OPENING_PER_S = 40.0  # the first calls are spaced too: a service that refuses at once has then refused few
OPENING_DOUBLES_S = 0.2
BURST_S = 1.0  # before the first refusal a bucket's burst was admitted too: taken to be a second's worth

# After a refusal the pace is a little less than what was measured, then grows to a little more, until the next one. A
# refusal in a cycle of so many calls is under a percent of them; in what the bucket saves meanwhile nothing is lost.
CYCLE_CALLS = 110
CYCLE_S = (2.0, 40.0)  # at least, at most
MARGIN = 0.97
SPAN = 0.075  # growth in a cycle
REST = 0.008  # of a cycle, without starts, after a refusal
DOUBT_S = 6.0  # in so many seconds the pace grows by the measurement's possible error
LONG = 1.5  # cycles without a refusal: the rate has changed, so grow by BOLD_PER_S instead
BOLD_PER_S = 0.06
UNSURE = 0.15  # a doubt that calls for a longer rest
UNSURE_REST_S = 0.25
SURE_CALLS = (5, 20)  # admitted between two refusals, for a measurement that is worth something: in SURE_S, in less
SURE_S = 1.0

FAR = 1.2  # times the last measurement: grown so far, the pace before was not what filled the bucket
HASTY_CUT = 0.8  # when refused again before anything could be measured

# Refusals that go on, though the pace was cut again and again, are not about the pace: it is put back, and for as many
# refusals more it stays. The window answers them.
MARKS = 16
# One refusal in many says little of the pace, whatever it is: so many are forgiven, as a part of the calls started. At
# a slow pace fewer are, since a cut is cheap there and a bucket must be learned from few refusals.
FORGIVEN = 0.02
FORGIVEN_AT_PER_S = 80.0
MOST_FORGIVEN = 10.0  # at once
OFTEN_CALLS = 25  # or less between two refusals, at half the pace
ALWAYS_CALLS = 4  # the same, at any
BACK = 4.0  # times the pace, if it was as slow all the time
VAIN = 0.5


@dataclass(slots=True)
class _Mark:
    """A moment at which the service had nothing left: that of a start which it refused."""

    at: float
    index: int
    unused_s: float
    per_s: float  # the pace until then
    refused: int = 0  # starts after this one that were refused


class Pace:
    """Spaces the starts of calls, all numbered; times are seconds of one clock.

    Until the first refusal the pace doubles every OPENING_DOUBLES_S and is soon no limit. It grows only while it is
    what holds calls back.
    """

    __slots__ = (
        *("_blind", "_credit", "_cut_at", "_doubt", "_last", "_marks", "_meter", "_set", "_unused_s", "_used_s"),
        "starts",
    )

    def __init__(self) -> None:
        self.starts = 0
        self._meter = Meter(OPENING_PER_S)
        self._marks: deque[_Mark] = deque(maxlen=MARKS)
        self._last = 0.0
        self._used_s = 0.0  # since the last refusal
        self._unused_s = 0.0  # in all
        self._doubt = 1.0  # possible error of the last measurement, as a ratio
        self._set = OPENING_PER_S  # the pace after the last refusal
        self._cut_at = 0
        self._credit = 0.0  # refusals that are forgiven
        self._blind = 0  # refusals left that do not slow it

    @property
    def per_s(self) -> float | None:
        """Starts a second, once learned."""
        return self._meter.per_s if len(self._marks) > 1 else None

    @property
    def opens_at(self) -> float:
        """From when on the next call may start."""
        return self._meter.opens_at

    @property
    def rest_s(self) -> float:
        """How long to start nothing after a refusal; longer where nothing was measured, to have more to measure."""
        return REST * self._cycle_s if self._doubt < UNSURE else UNSURE_REST_S

    def started(self, now: float, *, grows: bool) -> int:
        """Takes note of a start; returns its number. ``grows``: nothing speaks against a faster pace."""
        meter = self._meter
        if not self.starts:
            self._marks.append(_Mark(now - BURST_S, 0, 0.0, meter.per_s))
        elif (late_s := now - meter.due) <= 0:
            step_s = now - self._last
            self._used_s += step_s
            if grows:
                meter.per_s *= self._growth(step_s)
        else:
            self._unused_s += late_s
        self._last = now
        self._credit += FORGIVEN * min(1.0, meter.per_s / FORGIVEN_AT_PER_S)
        self._credit = min(self._credit, MOST_FORGIVEN)
        self.starts += 1
        meter.spend(1.0, now)
        return self.starts

    def refused(self, index: int, at: float) -> bool:
        """Takes note that the start with this number, made at ``at``, was refused; says whether the pace was cut.

        Calls that were in flight at a cut do not cut again.
        """
        for mark in self._marks:
            mark.refused += index > mark.index
        if index <= self._cut_at:
            return False
        if self._credit >= 1.0:
            self._credit -= 1.0
            return False
        here = _Mark(at, index, self._unused_s, self._meter.per_s)
        rate, doubt, fresh = self._measure(here)
        meter, before = self._meter, self._meter.per_s
        if len(self._marks) == 1:
            meter.per_s = rate
        elif self._blind:
            self._blind -= 1
        elif self._in_vain(here):
            meter.per_s, self._blind = max(self._marks[0].per_s, BACK * meter.per_s), MARKS
        elif not fresh:
            meter.per_s = HASTY_CUT * before
        else:
            least = HASTY_CUT * before if before > FAR * self._set else 0.0
            meter.per_s = min(max(MARGIN * rate, least), before)
        self._set = meter.per_s
        self._doubt = doubt
        self._marks.append(here)
        self._cut_at = self.starts
        self._used_s = 0.0
        return True

    def pause_until(self, until: float) -> None:
        """No start before."""
        self._last = until
        self._meter.due = until + SLACK_S

    @property
    def _cycle_s(self) -> float:
        return min(max(CYCLE_CALLS / self._meter.per_s, CYCLE_S[0]), CYCLE_S[1])

    def _measure(self, here: _Mark) -> tuple[float, float, bool]:
        """Calls admitted a second between an earlier refusal and this one, and how wrong that may be, as a ratio."""
        for mark in reversed(self._marks):
            admitted = here.index - mark.index - mark.refused
            seconds = max(here.at - mark.at - (here.unused_s - mark.unused_s), 1e-3)
            if admitted >= SURE_CALLS[1] or (admitted >= SURE_CALLS[0] and seconds >= SURE_S):
                break
        fresh = mark is self._marks[-1] or seconds < self._cycle_s / 2
        doubt = 2.0 if mark.index == 0 else 1.0 / max(admitted, 1) if fresh else UNSURE
        return max(admitted, 1) / seconds, doubt, fresh

    def _in_vain(self, here: _Mark) -> bool:
        """Whether the last MARKS refusals came as if the pace, which was lowered all the time, did not matter."""
        first, calls = self._marks[0], here.index - self._marks[0].index
        if len(self._marks) < MARKS:
            return False
        lowered = calls <= MARKS * OFTEN_CALLS and here.per_s < VAIN * first.per_s
        return lowered or calls <= MARKS * ALWAYS_CALLS

    def _growth(self, step_s: float) -> float:
        if len(self._marks) == 1:
            return 2.0 ** (step_s / OPENING_DOUBLES_S)
        cycle_s = self._cycle_s
        probing = BOLD_PER_S if self._used_s > LONG * cycle_s else SPAN / cycle_s
        return math.exp(step_s * max(probing, self._doubt / DOUBT_S))
