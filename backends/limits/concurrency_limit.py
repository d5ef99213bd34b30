"""How many calls of a model may be in flight."""

from __future__ import annotations

from collections import deque

START = 20

# A service with a limit of concurrent calls refuses a call while exactly that number of others is in flight. ALIKE
# refusals in a row, with the same number each time, are taken for such a limit. If that proves wrong, twice as many are
# needed next time. With few calls in flight their number is often equal by chance, and the pace does as well.
ALIKE = 4
LEAST_HELD = 4
HELD_ANSWERS = 110  # with a full window, until one more call tries whether the service takes it by now


class ConcurrencyLimit:
    """Begins at ``start`` and doubles in each round of answers, up to its ceiling or what the service runs at once.

    Args:
        ceiling: calls in flight at most.
        start: calls in flight at first.
        fixed: it begins at the ceiling, whatever ``start`` is.
    """

    __slots__ = ("_alike", "_ceiling", "_held", "_others", "size")

    def __init__(self, ceiling: int, *, start: int = START, fixed: bool = False) -> None:
        self._ceiling = ceiling
        self._held: int | None = None  # the number of others in flight at which calls are refused
        self._others: deque[int] = deque(maxlen=ALIKE)
        self.size = float(ceiling if fixed else min(start, ceiling))

    def cap(self, ceiling: int, start: int) -> None:
        """Another ceiling from now on; 0: no calls at all, and later ``start`` at first, as in the beginning."""
        self._ceiling = ceiling
        self.size = float(min(self.size or start, ceiling))

    def grow(self) -> None:
        """For one answer that came while the window was full."""
        tries = self._held is not None and self.size < self._held + 2
        self.size = min(self._ceiling, self.size + (1.0 / HELD_ANSWERS if tries else 1.0))

    def explains(self, others: int) -> bool:
        """Whether a call is refused because the service runs no more than the ``others`` at once.

        Then as many are in flight at most from now on.
        """
        if self._held is None:
            return False
        if others < self._held:
            self._held = None
            self._others = deque(maxlen=2 * (self._others.maxlen or ALIKE))
            return False
        self.size = self._held = others
        return True

    def refused(self, others: int) -> bool:
        """Takes note of a refusal that lowers the pace; returns whether it was the window that is too large."""
        self._others.append(others)
        if len(self._others) < (self._others.maxlen or ALIKE) or len(set(self._others)) > 1 or others < LEAST_HELD:
            return False
        self.size = self._held = others
        return True
