"""How fast calls of a model start, learned from what the service refuses.

A window alone cannot hold a service's rate: where few calls are in flight, one more is a large part of all, and every
round of growth ends in refusals. So the starts are spaced, and the rate is measured: a token bucket is empty whenever
it refuses, hence what it admitted between two refusals, divided by the time, is its rate, however deep it is.

Others may call the same service. What is measured is then only our part of its rate, and would stay what it happens to
be. So company is detected, and answered with additive increase and multiplicative decrease: the faster caller is
refused more often, yet grows no faster, and the shares converge.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from llmdo.backends.limits.rates import SLACK_S, Meter

OPENING_PER_S = 40.0  # the first calls are spaced too: a service that refuses at once has then refused few
OPENING_DOUBLES_S = 0.2
BURST_S = 1.0  # before the first refusal a bucket's burst was admitted too: taken to be a second's worth

# After a refusal the pace is a little less than what was measured, then grows to a little more, until the next one. A
# refusal in such a cycle is under a percent of its calls, and what the bucket saves meanwhile is not lost.
CYCLE_CALLS = 110
CYCLE_S = (2.0, 40.0)  # at least, at most
MARGIN = 0.97
SPAN = 0.075  # growth in a cycle
REST = 0.008  # of a cycle, without starts, after a refusal
DOUBT_S = 6.0  # seconds in which the pace grows by the measurement's possible error
LONG = 1.5  # cycles without a refusal: the rate has changed, so grow by BOLD_PER_S instead
BOLD_PER_S = 0.06
UNSURE = 0.15  # a doubt that calls for a longer rest
UNSURE_REST_S = 0.25
SURE_CALLS = (5, 20)  # admitted between two refusals, for a measurement that is worth something: in SURE_S, in less
SURE_S = 1.0

FAR = 1.2  # times the last measurement: grown so far, the pace before was not what filled the bucket
HASTY_CUT = 0.8  # when refused again before anything could be measured

# Alone, a call is refused only once the pace has passed what was measured. A refusal before that is a surprise. Those
# in a row count once, as when a rate halves; two within COMPANY cuts mean company, until as many pass without any. So
# does a refusal of the very first calls: the service was used up when they came.
COMPANY = 20
FIRST_CALLS = 5
COMPANY_CUT = 0.07
NEXT_CALLS = 2  # after a cut, which do not cut again in company: the others have yet to be refused
COMPANY_CALLS = 90  # since the last cut, until the pace grows as fast as at most alone

# Refusals that go on, though the pace was cut again and again, may be not about the pace: it is put back on trial, and
# for as many refusals more it stays. The window answers them. If the trial fails, the next one comes much later.
MARKS = 16
# One refusal in many says little about the pace: this part of the calls started is forgiven. At
# a slow pace fewer are, since a cut is cheap there and a bucket must be learned from few refusals.
FORGIVEN = 0.02
FORGIVEN_AT_PER_S = 80.0
MOST_FORGIVEN = 10.0  # at once
OFTEN_CALLS = 25  # or less between two refusals, at half the pace
OFTEN_BY_PACE = 12.0  # times the root of the pace, if that is less: in company slow callers are refused more often
ALWAYS_CALLS = 4  # the same, at any
BACK = 4.0  # times the pace, at most
VAIN = 0.5
ADMITTED = 0.75  # of the part that was admitted before a trial, at least
REFUSED = 2.3  # times the part that was refused before it, at most
TRIAL_CALLS = 1000  # after a failed trial, doubling
MOST_FAILED = 7


@dataclass(slots=True)
class _Mark:
    """A moment at which the service had nothing left: that of a start which it refused."""

    at: float
    index: int
    unused_s: float
    per_s: float  # the pace until then
    refused: int = 0  # starts after this one that were refused


@dataclass(slots=True)
class _Trial:
    """Whether refusals are about the pace: it was raised to see whether they become more.

    Attributes:
        index: of the last start before; ``per_s``: the pace until then; ``refused_part``: of the calls until then.
        refused: starts since then that were refused.
    """

    index: int
    per_s: float
    refused_part: float
    refused: int = 0

    def failed(self, calls: int) -> bool:
        """Whether more of these calls were refused than the pace before would explain."""
        part = self.refused / max(calls, 1)
        return 1 - part < ADMITTED * (1 - self.refused_part) or part > REFUSED * self.refused_part


class Pace:
    """Spaces the starts of calls, all numbered; times are seconds of one clock.

    Until the first refusal the pace doubles every OPENING_DOUBLES_S and is soon no limit. It grows only while it is
    what holds calls back.
    """

    __slots__ = (
        *("_company", "_credit", "_cut_at", "_doubt", "_failed", "_last", "_marks", "_measured", "_meter", "_set"),
        *("_surprised", "_trial", "_trial_from", "_unused_s", "_used_s"),
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
        self._measured = 0.0  # admitted a second, by the last measurement
        self._surprised = False  # by the last cut
        self._company = 0  # what speaks for others who call the same service
        self._trial: _Trial | None = None
        self._trial_from = 0  # the start from which the next trial may begin
        self._failed = 0  # trials in a row

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
        """Takes note that the start with this number, made at ``at``, was refused; returns whether the pace was cut.

        Calls that were in flight at a cut do not cut again.
        """
        for mark in self._marks:
            mark.refused += index > mark.index
        if self._trial and self._fails(self._trial, index):
            self._cut(_Mark(at, index, self._unused_s, self._meter.per_s), MARGIN * self._trial.per_s)
            self._trial = None
            return True
        if index <= self._cut_at + (NEXT_CALLS if self._in_company and self._doubt < 1.0 else 0):
            return False
        if self._credit >= 1.0:
            self._credit -= 1.0
            return False
        here = _Mark(at, index, self._unused_s, self._meter.per_s)
        rate, doubt, fresh = self._measure(here)
        first, before = self._marks[0], self._meter.per_s
        if len(self._marks) > 1:
            self._look_for_company(before < self._measured)
        if len(self._marks) == 1:
            per_s, self._company = rate, 2 * COMPANY * (index <= FIRST_CALLS)
        elif self._trial:
            per_s = before
        elif self._in_vain(here):
            self._trial = _Trial(self.starts, before, first.refused / (index - first.index))
            per_s = BACK * before
        elif self._in_company:
            per_s = (1 - COMPANY_CUT) * before
        elif not fresh:
            per_s = HASTY_CUT * before
        else:
            least = HASTY_CUT * before if before > FAR * self._set else 0.0
            per_s = min(max(MARGIN * rate, least), before)
        self._measured, self._doubt = rate, doubt
        self._cut(here, per_s)
        return True

    def pause_until(self, until: float) -> None:
        """No start before."""
        self._last = until
        self._meter.due = until + SLACK_S

    @property
    def _cycle_s(self) -> float:
        return min(max(CYCLE_CALLS / self._meter.per_s, CYCLE_S[0]), CYCLE_S[1])

    @property
    def _in_company(self) -> bool:
        return self._company >= COMPANY

    def _look_for_company(self, surprised: bool) -> None:
        begins = surprised and not self._surprised
        self._company = min(2 * COMPANY, self._company + COMPANY) if begins else max(0, self._company - 1)
        self._surprised = surprised

    def _cut(self, here: _Mark, per_s: float) -> None:
        self._meter.per_s = self._set = per_s
        self._marks.append(here)
        self._cut_at = self.starts
        self._used_s = 0.0

    def _fails(self, trial: _Trial, index: int) -> bool:
        """Whether the trial ends with this refusal because the pace did matter."""
        if index <= trial.index:
            return False
        trial.refused += 1
        if trial.refused < MARKS:
            return False
        if not trial.failed(index - trial.index):
            self._trial, self._failed = None, 0
            return False
        self._trial_from = self.starts + TRIAL_CALLS * 2**self._failed
        self._failed = min(self._failed + 1, MOST_FAILED)
        return True

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
        if len(self._marks) < MARKS or self.starts < self._trial_from:
            return False
        often = min(OFTEN_CALLS, OFTEN_BY_PACE * math.sqrt(here.per_s))
        lowered = calls <= MARKS * often and here.per_s < VAIN * first.per_s
        return lowered or calls <= MARKS * ALWAYS_CALLS

    def _growth(self, step_s: float) -> float:
        if len(self._marks) == 1:
            return 2.0 ** (step_s / OPENING_DOUBLES_S)
        cycle_s = self._cycle_s
        if self._in_company:
            probing = SPAN / CYCLE_S[0] * min(1.0, (self.starts - self._cut_at) / COMPANY_CALLS)
        else:
            probing = BOLD_PER_S if self._used_s > LONG * cycle_s else SPAN / cycle_s
        return math.exp(step_s * max(probing, self._doubt / DOUBT_S))
