"""What this process may spend of the output's budget, which other runs and machines share.

The budget is kept with the output. A process leases a part of it, before calls need it, and leases more or gives back
when that is due; who writes that down is no concern of this module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from llmdo.backends.errors import BudgetSpent
from llmdo.backends.money.grants import NOTHING_FREE, Allowance

# More is leased when what is free would last for fewer seconds, or fewer calls like the largest, than these.
_AHEAD_S, _CALLS_AHEAD = 3.0, 2
# Calls like the largest that the first lease is for; while calls wait, each lease is twice as large as the one before.
_FIRST_CALLS = 16
# More lines than any batch has: they all have come back.
ALL_LINES = 1 << 40
# For how long a refusal holds: meanwhile the budget may have been raised, or others may have given something back.
_REFUSED_S = 60.0


@dataclass(frozen=True, slots=True)
class PeriodBudget:
    """What an output may cost in each period: ``--budget``.

    Attributes:
        usd, tokens: US dollars, input and output tokens together; None: no limit.
        period: hour, day, week, month or ever, in UTC.
        waits: when it is used up, calls wait for the next period; else they are refused.
    """

    usd: float | None = None
    tokens: int | None = None
    period: str = "ever"
    waits: bool = False

    def __str__(self) -> str:
        amount = f"{self.tokens} tokens" if self.usd is None else f"{self.usd:.12g} USD"
        return amount if self.period == "ever" else f"{amount}/{self.period}"


@dataclass(frozen=True, slots=True)
class Reserve:
    """What lines that were left in a batch may cost at most; negative for lines that have come back."""

    lines: int
    most: Allowance = NOTHING_FREE

    def __add__(self, other: Reserve) -> Reserve:
        return Reserve(self.lines + other.lines, self.most + other.most)

    def __neg__(self) -> Reserve:
        return Reserve(-self.lines, NOTHING_FREE - self.most)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a process would like to lease.

    Attributes:
        used: what its calls have used, or may have used, since it began.
        held: what calls in flight have reserved.
        kept: what it may spend whatever is answered, ``held`` included.
        least: what a call that waits needs besides ``held``; None: none waits.
        wanted: besides ``held``, so that calls need not wait soon.
        reserves: what was left in batches since the last answer, and is part of ``used``, by the batch's key; and what
            has come back.
    """

    used: Allowance
    held: Allowance
    kept: Allowance
    least: Allowance | None
    wanted: Allowance
    reserves: Mapping[str, Reserve] = field(default_factory=dict)


class Lease:
    """A process's part of the output's budget. Its Budget uses it, under a lock that both share.

    Args:
        budget: the output's.
        lock: the Budget's.
        position: returns what calls have used, and what those in flight reserve; called under the lock.
        clock: seconds, monotonic.

    Attributes:
        asked: set when something is to be written soon: a call waits, little is left, or a call ended that may leave
            room for one that waits.
        awaited: ends with the answer that a call awaits; None if it is refused.
        settled: what was used, as far as it is written down as spent.
    """

    def __init__(
        self,
        budget: PeriodBudget,
        lock: threading.Lock,
        position: Callable[[], tuple[Allowance, Allowance]],
        clock: Callable[[], float],
    ) -> None:
        self.budget = budget
        self.asked = threading.Event()
        self.awaited: Future[None] | None = None
        self.settled = Allowance()
        self._lock, self._position, self._clock = lock, position, clock
        self._granted, self._until = Allowance(), float("-inf")
        self._answered: Future[None] = Future()
        self._least: Allowance | None = None
        self._refusal: tuple[Allowance, BudgetSpent, float] | None = None
        self._largest, self._wanted, self._second = Allowance(), Allowance(), Allowance()
        self._reserves: dict[str, Reserve] = {}
        self._used, self._since = Allowance(), clock()  # when the rate was measured last
        self._seen = Allowance()

    # Called by the Budget, under the lock.

    def why_not(self, amount: Allowance) -> BudgetSpent | None:
        """Why a call that may use ``amount`` cannot start now. Unless refused, ``awaited`` ends with an answer."""
        now, free, amount = self._clock(), self._free(), self._limited(amount)
        self._largest = self._largest.at_least(amount)
        if now < self._until and free.covers(amount):
            ahead = self._second.times(_AHEAD_S).at_least(self._largest.times(_CALLS_AHEAD))
            if not (free - amount).covers(ahead):
                self.asked.set()
            return None
        if self._refusal and now < self._refusal[2] and amount.covers(self._refusal[0]):
            self.awaited = None
            return self._refusal[1]
        if self._least is None or not amount.covers(self._least):
            self._least = amount
            self.asked.set()
        self.awaited = self._answered
        return BudgetSpent(f"more of --budget {self.budget} is asked for")

    def reserve(self, key: str, reserve: Reserve) -> None:
        """Lines were left in a batch of this key, or have come back."""
        self._reserves[key] = self._reserves.get(key, Reserve(0)) + reserve

    def ended(self) -> None:
        """A call has ended."""
        if self._least is not None:
            self.asked.set()

    # Called by who writes down what is leased.

    @property
    def idle(self) -> bool:
        """Whether something is leased, and no call is in flight."""
        with self._lock:
            used, held = self._position()
            return held == NOTHING_FREE and not NOTHING_FREE.covers(self._granted - self._limited(used))

    def wish(self, horizon_s: float) -> Wish:
        """What to lease, enough for these seconds; 0: nothing but what calls in flight hold.

        Until the answer, no more than ``kept`` is spent.
        """
        with self._lock:
            now, (used, held) = self._clock(), self._position()
            held, least = self._limited(held), self._least
            self.asked.clear()
            seconds = now - self._since
            if seconds >= 1.0:
                self._second = self._limited(used - self._used).at_least(NOTHING_FREE).times(1.0 / seconds)
                self._used, self._since = used, now
            wanted = self._second.times(horizon_s)
            idle = held == NOTHING_FREE and least is None and used == self._seen
            self._seen = used
            if horizon_s and not idle:
                wanted = wanted.at_least(self._largest.times(_FIRST_CALLS))
            if least is not None:
                wanted = wanted.at_least(self._wanted.times(2.0)).at_least(least)
            self._wanted = wanted
            # A call that waits returns all that is free: of two processes that keep too little, both would wait.
            most = held if least is not None else held + wanted
            self._granted = self._granted.at_most(self._limited(used) + most)
            kept = (self._granted - self._limited(used)).at_least(NOTHING_FREE)
            return Wish(used, held, kept, least, wanted, dict(self._reserves))

    def grant(self, wish: Wish, leased: Allowance, until: float) -> None:
        """When a wish was made, so much was leased, which calls may use until then by ``clock``."""
        with self._lock:
            self.settled = wish.used
            for key, written in wish.reserves.items():
                left = self._reserves.pop(key) + -written
                if left.lines:
                    self._reserves[key] = left
            self._granted, self._until = self._limited(wish.used) + leased, until
            self._wanted = self._wanted.at_most(leased)
            answered = self._answer() if self._least is None or self._free().covers(self._least) else None
        if answered:
            answered.set_result(None)

    def refuse(self, least: Allowance, error: BudgetSpent) -> None:
        """There is not enough for a call that needs ``least``, and nobody is known who could leave more."""
        with self._lock:
            self._refusal = least, error, self._clock() + _REFUSED_S
            answered = self._answer()
        answered.set_result(None)

    def _answer(self) -> Future[None]:
        """What calls await, to be ended without the lock."""
        self._least = None
        answered, self._answered = self._answered, Future()
        return answered

    def _free(self) -> Allowance:
        used, held = self._position()
        return self._granted - self._limited(used) - self._limited(held)

    def _limited(self, amount: Allowance) -> Allowance:
        """What of an amount the budget limits."""
        budget = self.budget
        return Allowance(0.0 if budget.usd is None else amount.usd, 0 if budget.tokens is None else amount.tokens)
