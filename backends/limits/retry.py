"""When a failed call is tried again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from llmdo.backends.errors import CallTimeout, ModelError, Overloaded, RateLimited, Retryable

OUT_OF_CAPACITY = 3040  # Workers AI; comes with HTTP 429

CALL_TIMEOUT_S = 600.0  # of one try, as OpenAI's own client has it: models that reason take 10 minutes

PACED_TRIES = 8  # refusals of a request whose next try waits for the pace more than for its own back-off

_instant = False


def set_instant(instant: bool) -> None:
    """Makes every wait zero, or normal again; for tests. The number of tries stays as it is."""
    global _instant  # noqa: PLW0603 - one switch for the process is the point
    _instant = instant


def instant() -> bool:
    """Whether waits are zero."""
    return _instant


def is_throttled(error: ModelError) -> bool:
    """Whether the service had too many calls, ours or others': it failed at nothing, and the call cost nothing."""
    if isinstance(error, RateLimited):
        return True
    return isinstance(error, Overloaded) and (error.status == 429 or error.code == OUT_OF_CAPACITY)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a retryable call is tried, and the bounds of its back-off.

    Attributes:
        attempts: tries in all, where it fails.
        timeouts: as ``attempts``, where the last try ended at our own limit of time: such a one may be paid, and the
            next one is likely as slow.
        refusals: tries that the service may refuse (see is_throttled); they count apart from those that fail.
        deadline_s: seconds from a request's first call in which its tries begin, and that a batch may take.
        base_s: upper bound of the first wait, in seconds; doubles with each try.
        cap_s: upper bound of any wait of our own. What the service asks for with Retry-After is kept even above it,
            up to ``deadline_s``.
    """

    attempts: int = 3
    base_s: float = 0.5
    cap_s: float = 30.0
    refusals: int = 20
    deadline_s: float = 1800.0
    timeouts: int = 2

    def asks_too_much(self, error: ModelError) -> bool:
        """Whether the service asks to wait for longer than a request may take."""
        return isinstance(error, Retryable) and (error.retry_after or 0.0) > self.deadline_s

    def wait_s(
        self,
        error: ModelError,
        tries: int,
        rng: random.Random,
        spent_s: float = 0.0,
        *,
        excused: bool = False,
        paced: bool = False,
    ) -> float | None:
        """Seconds to wait before the next try, or None when the error is final.

        ``tries`` counts those so far that ended like this one: refused, or failed. ``spent_s``: seconds since the first
        call. ``excused``: tries go on whatever their number, until the deadline. The wait is random in the upper half
        of the exponential back-off; with Retry-After it is the larger of both, spread a little so that the waiting
        calls do not return all at once. ``paced``: calls are spaced by what the service admits, so that the first
        PACED_TRIES refusals of a request call for half of the first wait only.
        """
        if not isinstance(error, Retryable) or (tries >= self._most(error) and not excused):
            return None
        asked = error.retry_after or 0.0
        if self.asks_too_much(error):
            return None
        if _instant:
            return 0.0
        doublings = max(tries - PACED_TRIES, 0) - 1 if paced and is_throttled(error) else tries - 1
        bound = min(self.cap_s, self.base_s * 2.0 ** min(doublings, 30))
        jitter = rng.random()
        own = bound * (0.5 + jitter / 2)
        wait = max(own, asked + bound * jitter) if asked else own
        return wait if spent_s + (asked or own) <= self.deadline_s else None

    def _most(self, error: ModelError) -> int:
        if is_throttled(error):
            return self.refusals
        ours = isinstance(error, CallTimeout) and error.status is None
        return min(self.attempts, self.timeouts) if ours else self.attempts


THREE_TRIES = Retry()
