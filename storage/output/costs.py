"""What answers cost, added up. A sum knows how many of its answers have no known cost, and what lanes had of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_DECIMALS = 12  # of a sum: a millionth of a micro-dollar


@dataclass(slots=True, unsafe_hash=True)
class LaneCost:
    """What answers cost that were not paid at list price from the start; in US dollars.

    Attributes:
        lane: batch, flex …; ``rescued`` for calls in the place of a batch that would have come too late; UNPAID.
        lines: answers whose cost is known.
        list_usd: what they would have cost at list price.
        rescue_usd: what rescued ones cost beyond a batch.
    """

    lane: str
    lines: int = 0
    usd: float = 0.0
    list_usd: float = 0.0
    rescue_usd: float = 0.0


UNPAID = "free"  # of answers that another line has paid for, or a gateway's cache gave


@dataclass(slots=True, unsafe_hash=True)
class Cost:
    """What some answers cost.

    Attributes:
        usd: US dollars of the answers whose cost is known; None if there are answers but no known cost.
        unpriced: how many answers have no known cost: unless 0, ``usd`` is a lower bound.
        neurons: Workers AI's unit, the sum of those reported; None if none were.
        lanes: the part of it that was not paid at list price, by lane.
    """

    usd: float | None = 0.0
    unpriced: int = 0
    neurons: float | None = None
    lanes: tuple[LaneCost, ...] = ()


NOTHING = Cost()


def unknown(answers: int) -> Cost:
    """The cost of answers for which no cost was reported."""
    return Cost(None if answers else 0.0, answers)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum.

    >>> total([Cost(0.5), Cost(0.25, neurons=3.0), unknown(2)])
    Cost(usd=0.75, unpriced=2, neurons=3.0, lanes=())
    """
    costs = list(costs)
    usd = _sum(cost.usd for cost in costs) or 0.0
    unpriced = sum(cost.unpriced for cost in costs)
    # If everything that was priced cost nothing, 0 is not a useful lower bound.
    known = usd if usd or not unpriced else None
    return Cost(known, unpriced, _sum(cost.neurons for cost in costs), _by_lane(costs))


def _by_lane(costs: Iterable[Cost]) -> tuple[LaneCost, ...]:
    by_lane: dict[str, list[LaneCost]] = {}
    for cost in costs:
        for one in cost.lanes:
            by_lane.setdefault(one.lane, []).append(one)
    return tuple(
        LaneCost(
            lane,
            sum(one.lines for one in some),
            *(_sum(getattr(one, name) for one in some) or 0.0 for name in ("usd", "list_usd", "rescue_usd")),
        )
        for lane, some in sorted(by_lane.items())
    )


def _sum(amounts: Iterable[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return round(math.fsum(known), _DECIMALS) if known else None
