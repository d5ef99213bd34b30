"""How long batches take until their answers are there: by those of this output, and before by what is published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Before anything was measured: by which parts of the published window a sixteenth each of all batches comes back; the
# last one never does. OpenRouter's beta, with a window of 24 h: half within 7 minutes, nine of ten within 1 h.
_EXPECTED = (
    *(1 / 2000, 1 / 1000, 1 / 500, 1 / 300, 1 / 200, 1 / 140, 1 / 100, 1 / 70),
    *(1 / 48, 1 / 32, 1 / 24, 1 / 12, 1 / 6, 1 / 2, 1.0, float("inf")),
)
_EXPECTED_WORTH = 2.0  # measured batches that this guess counts for, all parts together
MOST_MEASURED = 50  # the newest; a service of last month tells little


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """How likely a batch comes back within some time.

    Attributes:
        window_s: the longest time that the provider publishes.
        returned: seconds from hand-over to answers, of batches that came back.
        unreturned: seconds that others have waited: they are still out, or were given up then.
    """

    window_s: float
    returned: tuple[float, ...] = ()
    unreturned: tuple[float, ...] = ()

    def chance(self, within_s: float, waited_s: float = 0.0) -> float:
        """The chance that a batch which has waited for ``waited_s`` comes back within ``within_s`` from now.

        The Kaplan-Meier estimate: a batch that is still out tells only that it took longer than it has waited.
        """
        if within_s <= 0:
            return 0.0
        out = 1.0
        for seconds, part in self._parts():
            if waited_s < seconds <= waited_s + within_s:
                out *= 1.0 - part
        return 1.0 - out

    def _parts(self) -> Iterator[tuple[float, float]]:
        """When some come back, and which part of those that are out by then."""
        weight = _EXPECTED_WORTH / len(_EXPECTED)
        seen = [(self.window_s * part, weight, part < float("inf")) for part in _EXPECTED]
        seen += [(seconds, 1.0, True) for seconds in self.returned[-MOST_MEASURED:]]
        seen += [(seconds, 1.0, False) for seconds in self.unreturned[-MOST_MEASURED:]]
        seen.sort(key=lambda one: (one[0], not one[2]))
        out = sum(one[1] for one in seen)
        for seconds, worth, came_back in seen:
            if came_back:
                yield seconds, worth / out
            out -= worth
