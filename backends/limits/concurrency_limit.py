"""How many calls of a model may be in flight."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from llmdo.backends.errors import short

START = 20
# One setting holds calls, file descriptors and memory within what one process can serve.
MAX_CONCURRENCY = 4096

# A service with a limit of concurrent calls refuses a call while exactly that number of others is in flight. ALIKE
# refusals in a row, with the same number each time and no call admitted beside more, are taken for such a limit. If
# that proves wrong, twice as many are needed next time.
ALIKE = 4
HELD_ANSWERS = 110  # with a full window, until one more call tries whether the service takes it by now


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Calls in flight at most; refusals lower it unless it is ``fixed``."""

    calls: int
    fixed: bool = False

    def __str__(self) -> str:
        return f"fixed:{self.calls}" if self.fixed else str(self.calls)


def given_concurrency(value: Any) -> Concurrency:
    """Reads ``N`` and ``fixed:N``; a Concurrency stays as it is. Raises ValueError."""
    if isinstance(value, Concurrency):
        return value
    match = re.fullmatch(r"(fixed:)?([0-9]{1,9})", str(value))
    if match is None or isinstance(value, bool):
        raise ValueError("write a number, or fixed:NUMBER")
    calls = int(match[2])
    if not 1 <= calls <= MAX_CONCURRENCY:
        raise ValueError(f"write a number from 1 to {MAX_CONCURRENCY:,}")
    return Concurrency(calls, fixed=match[1] is not None)


def named_concurrency(value: Any) -> Concurrency:
    """The same for the argument ``concurrency``, which its error names."""
    try:
        return given_concurrency(value)
    except ValueError as error:
        raise ValueError(f"concurrency={short(value)}: {error}") from None


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
