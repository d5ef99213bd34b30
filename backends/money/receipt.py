"""What calls cost by the way that they went, and what all would have cost at list price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from llmdo.backends.money.prices import DECIMALS, Prices, cost_usd
from llmdo.backends.usage import Usage

# Ways beside the lanes: at list price from the start, at list price after a batch, and by a batch after that.
LIST, RESCUED, LATE = "list", "rescued", "late"


@dataclass(slots=True)
class LaneTally:
    """Calls of one way, answered or billed: their cost, and that at list price, in US dollars."""

    calls: int = 0
    usd: float = 0.0
    list_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was paid, by lane.

    Attributes:
        ways: by lane (batch, flex …), LIST, RESCUED or LATE.
        rescue_usd: what a deadline has cost: what rescued calls cost beyond a batch, and all of late answers.
    """

    ways: Mapping[str, LaneTally]
    rescue_usd: float

    @property
    def usd(self) -> float:
        """What was paid."""
        return round(sum(one.usd for one in self.ways.values()), DECIMALS)

    @property
    def list_usd(self) -> float:
        """What the answers would have cost at list price; a late one is a second answer, which nobody would pay."""
        return round(sum(one.list_usd for way, one in self.ways.items() if way != LATE), DECIMALS)

    @property
    def saved_usd(self) -> float:
        """The difference; negative if second answers cost more than the lanes have saved."""
        return round(self.list_usd - self.usd, DECIMALS)


@dataclass(frozen=True, slots=True)
class CallUsed:
    """What a call used, or may have used if it was lost, until its provider's prices are known.

    ``way``: RESCUED, LATE, or "".
    """

    provider: str
    asked: str
    answered: str
    usage: Usage
    lost: bool = False
    lane: str = ""
    way: str = ""


class Tallies:
    """Adds them up; guarded by the budget's lock."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._ways: defaultdict[str, LaneTally] = defaultdict(LaneTally)
        self._rescue_usd = 0.0

    def count(self, used: CallUsed, usd: float) -> None:
        """One call that cost so much."""
        tally = self._ways[used.way or used.lane or LIST]
        tally.calls += 1
        tally.usd += usd
        tally.list_usd += usd if not used.lane else self._price(used, "") or usd
        if used.way == RESCUED:
            self._rescue_usd += max(0.0, usd - (self._price(used, "batch") or usd))
        elif used.way == LATE:
            self._rescue_usd += usd

    def _price(self, used: CallUsed, lane: str) -> float | None:
        """Of another lane; it was not paid, so the prices that were used do not name it."""
        return cost_usd(used.usage, self._prices.of(used.provider, used.answered, used.asked, lane=lane))

    def receipt(self) -> Receipt | None:
        """None where all went at list price from the start."""
        if not self._ways.keys() - {LIST}:
            return None
        ways = {
            way: LaneTally(one.calls, round(one.usd, DECIMALS), round(one.list_usd, DECIMALS))
            for way, one in sorted(self._ways.items())
        }
        return Receipt(ways, round(self._rescue_usd, DECIMALS))
