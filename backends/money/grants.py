"""What one process may spend of a budget that several share: it asks for more, and is granted parts of the rest.

A process asks before it runs short, so that no call waits for the answer while there is enough. The sum of all grants
never exceeds the limit (see ``Purse``), whichever process dies with what it was granted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

# An ask is for at least as many calls like the largest one so far.
_CALLS_AT_LEAST = 10
# Sums of dollars are rounded, and what was granted must still be enough for the call that it was asked for. US dollars.
_ROUNDING_USD = 1e-9
# While it is asked to return what is free, a process does so at most this often. Seconds.
_RETURN_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Allowance:
    """US dollars, and input and output tokens together; 0 of what has no limit."""

    usd: float = 0.0
    tokens: float = 0

    def __add__(self, other: Allowance) -> Allowance:
        return Allowance(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: Allowance) -> Allowance:
        return Allowance(self.usd - other.usd, self.tokens - other.tokens)

    def times(self, factor: float) -> Allowance:
        """A multiple of it, in whole tokens."""
        return Allowance(self.usd * factor, int(self.tokens * factor) if self.tokens < float("inf") else self.tokens)

    def at_least(self, other: Allowance) -> Allowance:
        """The larger of both, of dollars and of tokens."""
        return Allowance(max(self.usd, other.usd), max(self.tokens, other.tokens))

    def at_most(self, other: Allowance) -> Allowance:
        """The smaller of both, of dollars and of tokens."""
        return Allowance(min(self.usd, other.usd), min(self.tokens, other.tokens))

    def covers(self, other: Allowance) -> bool:
        """Whether it is as much, of dollars and of tokens."""
        return self.usd >= other.usd - _ROUNDING_USD and self.tokens >= other.tokens


NOTHING_FREE = Allowance()


@dataclass(frozen=True, slots=True)
class Ask:
    """To the purse: please grant ``wanted``, at least ``least``. It replaces an earlier Ask that has no answer yet.

    ``waiting``: a call waits, so others should return what they do not use.
    """

    least: Allowance
    wanted: Allowance
    waiting: bool


@dataclass(frozen=True, slots=True)
class Return:
    """To the purse: ``amount`` is not needed. After ``grants`` Grants there are, or are not, calls in flight."""

    amount: Allowance
    grants: int
    in_flight: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """From the purse: ``amount`` may be spent, besides earlier ones."""

    amount: Allowance


@dataclass(frozen=True, slots=True)
class Reclaim:
    """From the purse: return what is free, now and whenever calls end, until the next Grant."""


@dataclass(frozen=True, slots=True)
class Denial:
    """From the purse: there is not enough for ``least``, and no call in flight could leave more."""

    least: Allowance
    reason: str


FromPurse = Grant | Reclaim | Denial
ToPurse = Ask | Return


class Grants:
    """What a process has been granted. Used by its Budget, which holds its own lock meanwhile.

    Args:
        send: sends to the purse; it must not wait, and keep the order.
        clock: seconds, monotonic.

    Attributes:
        granted: without what was returned.
        awaited: ends with the answer that the call awaits that lacked something last; None if it is denied.
    """

    def __init__(self, send: Callable[[ToPurse], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.granted = Allowance()
        self.awaited: Future[None] | None = None
        self._send, self._clock = send, clock
        self._answered: Future[None] = Future()  # ends with the next message from the purse
        self._received = 0
        self._asked: Ask | None = None
        self._denied: Denial | None = None
        self._reclaimed, self._returned_at = False, 0.0
        self._largest, self._second = Allowance(), Allowance()
        self._used, self._since = Allowance(), clock()

    def use(self, amount: Allowance, free: Allowance) -> None:
        """A call has reserved ``amount``, which leaves ``free``: asks for more if that is used up within a second."""
        self._largest = self._largest.at_least(amount)
        self._used += amount
        if self._asked is None and self._denied is None and not free.covers(self._second):
            self._ask(self._largest, waiting=False)

    def lack(self, amount: Allowance, free: Allowance) -> str | None:
        """A call that would use ``amount`` does not fit into ``free``: asks for it, or returns why it is denied."""
        if self._denied and amount.covers(self._denied.least):
            self.awaited = None
            return self._denied.reason
        self._largest = self._largest.at_least(amount)
        # What calls have used beyond their estimates is lacking as well.
        least = amount + Allowance(max(0.0, -free.usd), max(0, -free.tokens))
        asked = self._asked
        if asked is None or not asked.waiting or not asked.least.covers(least):
            self._ask(least, waiting=True)
        self.awaited = self._answered
        return None

    def release(self, free: Allowance, in_flight: bool) -> None:
        """A call has ended: returns what is free if the purse wants it."""
        if self._reclaimed and (not in_flight or self._clock() >= self._returned_at + _RETURN_EVERY_S):
            self._return(free, in_flight)

    def receive(self, message: FromPurse, free: Allowance, in_flight: bool) -> Future[None]:
        """Takes an answer of the purse. Returns what waits for it, to be ended without the lock."""
        match message:
            case Grant(amount):
                self.granted += amount
                self._received += 1
                self._asked, self._denied, self._reclaimed = None, None, False
            case Denial():
                self._asked, self._denied = None, message
            case Reclaim():
                self._reclaimed = True
                self._return(free, in_flight)
        answered, self._answered = self._answered, Future()
        return answered

    def _return(self, free: Allowance, in_flight: bool) -> None:
        amount = free.at_least(NOTHING_FREE)
        self.granted -= amount
        self._returned_at = self._clock()
        self._send(Return(amount, self._received, in_flight))

    def _ask(self, least: Allowance, *, waiting: bool) -> None:
        now = self._clock()
        seconds = max(now - self._since, 0.05)  # the first calls come at once
        if self._used != NOTHING_FREE:
            self._second = self._used.times(1.0 / seconds)
            self._used, self._since = Allowance(), now
        wanted = self._second.at_least(self._largest.times(_CALLS_AT_LEAST))
        self._asked = Ask(least, wanted.at_least(least), waiting)
        self._send(self._asked)
