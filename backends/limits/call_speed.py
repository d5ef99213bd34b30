"""How long calls at list price would take, with a margin for what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Before any call was answered: as a model that reasons takes.
UNKNOWN_LATENCY_S = 30.0
# The margin, and what is added for each time that the calls to come are ten times those that were measured.
_MARGIN, _MARGIN_A_DECADE = 1.25, 0.2
_TRIES = 2  # the last call may fail once


@dataclass(frozen=True, slots=True)
class CallSpeed:
    """What is known of the calls of a model, one by one.

    Attributes:
        window: calls that may be in flight.
        answered: how many were, by which the rest is judged.
        latency_s: what they took, in the mean; ``longest_s``: the longest.
        most_per_s: what rates, given or learned, allow; infinite without any.
    """

    window: int
    answered: int = 0
    latency_s: float = UNKNOWN_LATENCY_S
    longest_s: float = UNKNOWN_LATENCY_S
    most_per_s: float = math.inf

    @property
    def per_s(self) -> float:
        """Calls a second, as they are expected."""
        return min(self.window / max(self.latency_s, 1e-3), self.most_per_s)

    def seconds(self, calls: float) -> float:
        """How long this many take, with a margin that grows with their number beyond those that were answered."""
        if calls <= 0:
            return 0.0
        margin = _MARGIN + _MARGIN_A_DECADE * math.log10(1 + calls / (1 + self.answered))
        return margin * calls / self.per_s + _TRIES * max(self.longest_s, self.latency_s)
