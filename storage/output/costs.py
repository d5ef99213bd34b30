"""What answers cost, added up. A sum knows how many of its answers have no known cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_DECIMALS = 12  # of a sum: a millionth of a micro-dollar


@dataclass(slots=True, unsafe_hash=True)
class Cost:
    """What some answers cost.

    Attributes:
        usd: US dollars at list prices of the answers whose cost is known; None if there are answers but no known cost.
        unpriced: how many answers have no known cost: unless 0, ``usd`` is a lower bound.
        neurons: Workers AI's unit, the sum of those reported; None if none were.
    """

    usd: float | None = 0.0
    unpriced: int = 0
    neurons: float | None = None


NOTHING = Cost()


def unknown(answers: int) -> Cost:
    """The cost of answers for which no cost was reported."""
    return Cost(None if answers else 0.0, answers)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum.

    >>> total([Cost(0.5), Cost(0.25, neurons=3.0), unknown(2)])
    Cost(usd=0.75, unpriced=2, neurons=3.0)
    """
    costs = list(costs)
    usd = _sum(cost.usd for cost in costs) or 0.0
    unpriced = sum(cost.unpriced for cost in costs)
    # If everything that was priced cost nothing, 0 is not a useful lower bound.
    return Cost(usd if usd or not unpriced else None, unpriced, _sum(cost.neurons for cost in costs))


def _sum(amounts: Iterable[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return round(math.fsum(known), _DECIMALS) if known else None
