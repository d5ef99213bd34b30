"""How many calls of a model may be in flight."""

from __future__ import annotations

from collections import deque

START = 20

# A service with a limit of concurrent calls refuses a call while exactly that number of others is in flight. ALIKE
# refusals in a row, with the same number each time and no call admitted beside more, are taken for such a limit. If
# that proves wrong, twice as many are needed next time.
ALIKE = 4
HELD_ANSWERS = 110  # with a full window, until one more call tries whether the service takes it by now


class ConcurrencyLimit:
    """Begins at ``start`` and doubles in each round of answers, up to its ceiling or what the service runs at once.

    Args:
        ceiling: calls in flight at most.
        start: calls in flight at first.
        fixed: it begins at the ceiling, whatever ``start`` is.
    """

    __slots__ = ("_ceiling", "_found", "_held", "_others", "size")

    def __init__(self, ceiling: int, *, start: int = START, fixed: bool = False) -> None:
        self._ceiling = ceiling
        self._found = float(start)  # how large it was, or would be without its ceiling
        self._held: int | None = None  # the number of others in flight at which calls are refused
        self._others: deque[int] = deque(maxlen=ALIKE)
        self.size = float(ceiling if fixed else min(start, ceiling))

    def cap(self, ceiling: int) -> None:
        """Another ceiling from now on, 0 for no calls at all; below it, the window is as large as it was."""
        self._ceiling, self._found = ceiling, max(self._found, self.size)
        self.size = min(self._found, float(ceiling))

    def grow(self) -> None:
        """For one answer that came while the window was full."""
        tries = self._held is not None and self.size < self._held + 2
        self.size = min(self._ceiling, self.size + (1.0 / HELD_ANSWERS if tries else 1.0))

    def admitted(self, others: int, *, in_company: bool) -> None:
        """Takes note of a call that was admitted while ``others`` were in flight: there is no limit below that.

        ``in_company``: other callers are refused too, so that the same number by chance is more likely. Alone, one call
        more proves nothing: a refusal that is on its way still counts as in flight.
        """
        if self._others and others + in_company > self._others[-1]:
            self._others.clear()

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
        self._hold(others)
        return True

    def refused(self, others: int) -> bool:
        """Takes note of a refusal that lowers the pace; returns whether it was the window that is too large."""
        self._others.append(others)
        if len(self._others) < (self._others.maxlen or ALIKE) or len(set(self._others)) > 1 or not others:
            return False
        self._hold(others)
        return True

    def _hold(self, others: int) -> None:
        self.size = self._found = self._held = others
