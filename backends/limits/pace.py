"""How fast calls of a model start, learned from what the service refuses.

A window alone cannot hold a service's rate: where few calls are in flight, one more is a large part of all, and every
round of growth ends in refusals. So the starts are spaced, and the rate is measured: a token bucket is empty whenever
it refuses, hence what it admitted between two refusals, divided by the time, is its rate, however deep it is.

Others may call the same service. What is measured is then only our part of its rate, and would stay what it happens to
be. So company is detected, and answered with multiplicative decrease at each refusal and growth by the clock: the
faster caller is refused more often and cut deeper, yet grows no faster, and the shares converge.

Some refusals come at any pace. A trial (see chance) measures how large their part is; that part is forgiven from then
on.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from llmdo.backends.limits.chance import BURST_CALLS, BURST_CALLS_S, Chance, Trial
from llmdo.backends.limits.rates import SLACK_S, Meter

OPENING_PER_S = 40.0  # the first calls are spaced too: a service that refuses at once has then refused few
OPENING_DOUBLES_S = 0.2
LEAST_PER_S = 1 / 60  # slower than any published rate; a service that refuses everything is asked more rarely by rests
BURST_S = 1.0  # before the first refusal a bucket's burst was admitted too: taken to be a second's worth

MARKS = 16  # refusals that are remembered

# After a refusal the pace is a little less than what was measured, then grows to a little more, until the next one. A
# refusal in such a cycle is about a percent of its calls, and what the bucket saves meanwhile is not lost.
CYCLE_CALLS = 110
CYCLE_S = (2.0, 40.0)  # at least, at most
MARGIN = 0.97
SPAN = 0.075  # growth in a cycle
REST = 0.008  # of a cycle, without starts, after a refusal
DOUBT_S = 6.0  # seconds in which the pace grows by the measurement's possible error
LONG = 1.2  # cycles without a refusal: the rate has changed, so the pace doubles every BOLD_DOUBLES_S
BOLD_DOUBLES_S = 2.0
UNSURE = 0.15  # a doubt that calls for a longer rest
UNSURE_REST_S = 0.4
SURE_CALLS = (5, 20)  # admitted between two refusals, for a measurement that is worth something: in SURE_S, in less
SURE_S = 1.0

WINDOW_RAISE = 1.25  # so that the window, and not the pace, holds calls back
FAR = 1.2  # times the last measurement: grown so far, the pace before was not what filled the bucket
HASTY_CUT = 0.8  # when refused again before anything could be measured

# Alone, a call is refused only once the pace has passed what was measured. A refusal before that is a surprise. Those
# in a row count once, as when a rate halves; two within COMPANY cuts mean company, until as many pass without any. So
# does a refusal of the very first calls: the service was used up when they came.
COMPANY = 20
FIRST_CALLS = 5

# Which of several callers a service refuses is chance. With the same cut and growth at any pace, a pace would be
# inverse to the number of refusals that it meets, some 80 in three minutes at 10/s. With deeper cuts and slower growth
# at higher ones it is inverse to the square root of that number, so paces differ half as much. Not so beyond
# COMPANY_PER_S: below, still more of the calls would be refused; above, a bucket could not save what a cut leaves.
COMPANY_CUT = 0.07
COMPANY_PER_S = (10.0, 40.0)
COMPANY_GROWS = 0.03  # a second
NEXT_CALLS = 2  # after a cut, which do not cut again in company: the others have yet to be refused

# The first refusal begins a trial. After one that chance did not explain, the next one comes NEXT_TRIAL calls later,
# doubling unless some refusals are forgiven; or once the pace is half of what it was then, or OFTEN cuts have come
# since, with no more than as many calls for each.
NEXT_TRIAL = (750, 8000)
OFTEN = 8
SLACK = 1.25  # times the part by chance is forgiven
MOST_FORGIVEN = 10.0  # at once


@dataclass(slots=True)
class _Mark:
    """A moment at which the service had nothing left: that of a start which it refused."""

    at: float
    index: int
    unused_s: float
    refused: int = 0  # starts after this one that were refused
    elsewhere: float = 0.0  # what would have been admitted besides, or less, had the share been that of now

    def admitted(self, index: int) -> float:
        """How many starts were admitted since, up to the one with this number."""
        return index - self.index - self.refused + self.elsewhere


class Pace:
    """Spaces the starts of calls, all numbered; times are seconds of one clock.

    Until the first refusal, and after a trial that chance explains, the pace doubles every OPENING_DOUBLES_S and is
    soon no limit. It grows only while it is what holds calls back.
    """

    __slots__ = (
        *("_chance", "_company", "_credit", "_cut_at", "_doubt", "_last", "_marks", "_measured", "_meter"),
        *(
            "_opens",
            "_set",
            "_surprised",
            "_trial",
            "_tried_at",
            "_trial_from",
            "_trial_gap",
            "_trial_per_s",
            "_unused_s",
        ),
        *("_used_s", "starts"),
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
        self._opens = True
        self._chance = Chance()
        self._trial: Trial | None = None
        self._trial_from, self._trial_gap = 0, NEXT_TRIAL[0]  # numbers of starts
        self._tried_at = 0
        self._trial_per_s = math.inf  # the pace before the last trial that chance did not explain

    @property
    def per_s(self) -> float | None:
        """Starts a second, once learned, here or by others: see ``share``."""
        return self._meter.per_s if len(self._marks) > 1 or not self._opens else None

    @property
    def opens_at(self) -> float:
        """From when on the next call may start."""
        return self._meter.opens_at

    @property
    def rest_s(self) -> float:
        """How long to start nothing after a refusal; longer where nothing was measured, to have more to measure."""
        return REST * self._cycle_s if self._doubt < UNSURE else UNSURE_REST_S

    @property
    def in_company(self) -> bool:
        """Whether others seem to call the same service."""
        return self._company >= COMPANY

    def started(self, now: float, *, grows: bool) -> int:
        """Takes note of a start; returns its number. ``grows``: nothing speaks against a faster pace."""
        meter = self._meter
        if not self.starts:
            self._marks.append(_Mark(now - BURST_S, 0, 0.0))
        elif (late_s := now - meter.due) <= 0:
            step_s = now - self._last
            self._used_s += step_s
            if grows:
                meter.per_s *= self._growth(step_s)
        else:
            self._unused_s += late_s
        self._last = now
        self._credit = min(self._credit + SLACK * self._chance.part, MOST_FORGIVEN)
        if self._trial and (explained := self._trial.verdict(self._chance, now)) is not None:
            self._end_trial(explained)
        self.starts += 1
        meter.spend(self._trial.started(now) if self._trial else 1.0, now)
        return self.starts

    def refused(self, index: int, at: float, now: float) -> bool:
        """Takes note that the start with this number, made at ``at``, was refused; returns whether the pace was cut.

        Calls that were in flight at a cut do not cut again.
        """
        for mark in self._marks:
            mark.refused += index > mark.index
        if self._trial:
            if index > self._trial.index:
                self._trial.refused(index, at, now)
            return False
        if index <= self._cut_at + (NEXT_CALLS if self.in_company and self._doubt < 1.0 else 0):
            return False
        if self._credit >= 1.0:
            self._credit -= 1.0
            return False
        self._cut(_Mark(at, index, self._unused_s))
        return True

    def raise_for_window(self) -> None:
        """The window was too large, and not the pace too high."""
        self._meter.per_s *= WINDOW_RAISE

    def share(self, per_s: float, instead_of: float | None) -> None:
        """The process makes more starts a second than it did, and others fewer, or the other way round.

        None: it has learned no pace, and takes over one that others have learned.
        """
        factor = per_s / (instead_of or self._meter.per_s)
        self._opens &= instead_of is not None
        self._meter.per_s = max(factor * self._meter.per_s, LEAST_PER_S)
        self._set *= factor
        self._measured *= factor
        self._trial_per_s *= factor
        for mark in self._marks:
            mark.elsewhere += (factor - 1.0) * mark.admitted(self.starts)

    def pause_until(self, until: float) -> None:
        """No start before."""
        self._last = until
        self._meter.due = until + SLACK_S

    @property
    def _cycle_s(self) -> float:
        return min(max(CYCLE_CALLS / self._meter.per_s, CYCLE_S[0]), CYCLE_S[1])

    @property
    def _swing(self) -> float:
        """How much deeper cuts and how much slower growth are in company than at COMPANY_PER_S[0] or below."""
        return math.sqrt(min(max(self._meter.per_s, COMPANY_PER_S[0]), COMPANY_PER_S[1]) / COMPANY_PER_S[0])

    def _look_for_company(self, surprised: bool) -> None:
        begins = surprised and not self._surprised
        self._company = min(2 * COMPANY, self._company + COMPANY) if begins else max(0, self._company - 1)
        self._surprised = surprised

    def _cut(self, here: _Mark) -> None:
        rate, doubt, fresh = self._measure(here)
        before = self._meter.per_s
        if len(self._marks) > 1:
            self._look_for_company(before < self._measured)
        if len(self._marks) == 1:
            per_s, self._company = rate, 2 * COMPANY * (here.index <= FIRST_CALLS)
        elif self.in_company:
            per_s = (1 - COMPANY_CUT * self._swing) * before
        elif not fresh:
            per_s = HASTY_CUT * before
        else:
            far = before > FAR * self._set and not self._chance.part
            per_s = min(max(MARGIN * rate, HASTY_CUT * before * far), before)
        self._measured, self._doubt, self._opens = rate, doubt, False
        self._credit = self._some_credit()
        if self.starts >= self._trial_from or before <= self._trial_per_s / 2 or self._is_often(here.index):
            self._trial = Trial(self.starts, max(BURST_CALLS, int(BURST_CALLS_S * per_s)))
            self._trial_per_s = per_s
        self._meter.per_s = self._set = max(per_s, LEAST_PER_S)
        self._marks.append(here)
        self._cut_at = self.starts
        self._used_s = 0.0

    def _some_credit(self) -> float:
        return MOST_FORGIVEN / 2 if self._chance.part else 0.0

    def _is_often(self, index: int) -> bool:
        first = self._marks[-OFTEN].index if len(self._marks) > OFTEN else 0
        return first > self._tried_at and index - first <= OFTEN**2

    def _end_trial(self, explained: bool) -> None:
        self._trial, self._tried_at = None, self.starts
        if explained:
            self._opens, self._credit, self._company = True, MOST_FORGIVEN, 0
            self._trial_from, self._trial_gap = 0, NEXT_TRIAL[0]
        else:
            self._credit = self._some_credit()
            self._trial_from = self.starts + self._trial_gap
            self._trial_gap = NEXT_TRIAL[0] if self._chance.part else min(2 * self._trial_gap, NEXT_TRIAL[1])
            self._meter.per_s = max(self._trial_per_s * (1 - COMPANY_CUT * self.in_company), LEAST_PER_S)
            self._used_s = 0.0

    def _measure(self, here: _Mark) -> tuple[float, float, bool]:
        """Calls admitted a second between an earlier refusal and this one, and how wrong that may be, as a ratio."""
        for mark in reversed(self._marks):
            admitted = mark.admitted(here.index)
            seconds = max(here.at - mark.at - (here.unused_s - mark.unused_s), 1e-3)
            if admitted >= SURE_CALLS[1] or (admitted >= SURE_CALLS[0] and seconds >= SURE_S):
                break
        fresh = mark is self._marks[-1] or seconds < self._cycle_s / 2
        doubt = 2.0 if mark.index == 0 else 1.0 / max(admitted, 1) if fresh else UNSURE
        return max(admitted, 1) / seconds, doubt, fresh

    def _growth(self, step_s: float) -> float:
        """At most the double, for one start."""
        if self._opens or self._trial:
            doubles_s = OPENING_DOUBLES_S if self._opens else BOLD_DOUBLES_S
            return math.exp(min(step_s / doubles_s, 1.0) * math.log(2))
        cycle_s = self._cycle_s
        if self.in_company:
            probing = COMPANY_GROWS / self._swing
        else:
            probing = math.log(2) / BOLD_DOUBLES_S if self._used_s > LONG * cycle_s else SPAN / cycle_s
        return math.exp(min(step_s * max(probing, self._doubt / DOUBT_S), math.log(2)))
