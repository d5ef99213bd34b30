"""How many calls of a model may be in flight: additive increase, multiplicative decrease."""

from __future__ import annotations

START = 20
CUT = 0.8


class ConcurrencyLimit:
    """Begins at ``start``, doubles in each round of answers until the first cut, then grows by one call a round, up to
    its ceiling. ``fixed``: begins at the ceiling, whatever ``start`` says.
    """

    __slots__ = ("_ceiling", "_doubles", "size")

    def __init__(self, ceiling: int, *, start: int = START, fixed: bool = False) -> None:
        self._ceiling = ceiling
        self._doubles = True
        self.size = float(ceiling if fixed else min(start, ceiling))

    def grow(self) -> None:
        """For one answer that came while the window was full."""
        self.size = min(self._ceiling, self.size + (1.0 if self._doubles else 1.0 / self.size))

    def cut(self) -> None:
        """Takes a fifth away; one call may always be in flight."""
        self._doubles = False
        self.size = max(1.0, CUT * self.size)
