"""Which lane an answer was paid in, and what it would have cost at list price."""

from __future__ import annotations

from collections.abc import Sequence

from llmdo.backends.money.prices import Prices, cost_usd, is_cached
from llmdo.backends.responses import Response
from llmdo.storage.output.costs import UNPAID, LaneCost
from llmdo.storage.output.receipts import IN_BATCHS_PLACE
from llmdo.transforms.prompts.parse import Prompt


def paid_by_lane(prices: Prices, prompt: Prompt, paid: Sequence[Response], usd: float | None) -> tuple[LaneCost, ...]:
    """What one line's answer cost in its lane; () at list price, or where the cost is not known.

    ``paid``: its parts that no other line has paid for, whose cost is ``usd`` together.
    """
    paid = [part for part in paid if not is_cached(part)]
    if not paid:
        return (LaneCost(UNPAID, 1),)
    lane = next((part.lane for part in paid if part.lane), "")
    rescued = any(part.rescued for part in paid)
    if usd is None or not (lane or rescued):
        return ()
    at_list = _cost_in("", prices, prompt, paid) if lane else usd
    batch = _cost_in("batch", prices, prompt, paid) if rescued else None
    rescue = max(0.0, usd - (batch or usd)) if rescued else 0.0
    return (LaneCost(IN_BATCHS_PLACE if rescued else lane, 1, usd, at_list or usd, rescue),)


def _cost_in(lane: str, prices: Prices, prompt: Prompt, paid: Sequence[Response]) -> float | None:
    costs = [
        cost_usd(part.usage, prices.of(prompt.provider, part.model, prompt.request.model, lane=lane)) for part in paid
    ]
    known = [usd for usd in costs if usd is not None]
    return sum(known) if len(known) == len(costs) else None
