"""What calls have used, added up."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.backends.money.prices import DECIMALS


@dataclass(frozen=True, slots=True)
class Spent:
    """What calls have used as reported by the providers, and what lost ones may have used besides.

    Attributes:
        calls: those with reported usage, answered or failed.
        neurons: the sum of those reported; None if none were.
        cost_usd: of the calls whose cost is known; None if there are calls but no known cost.
        unpriced: calls whose cost is not known: unless 0, the cost is a lower bound.
        cached_tokens, cache_write_tokens: of the input tokens, those read from providers' caches, and written to them.
        lost_calls: calls that may be billed although no usage was reported: see ``maybe_billed``. The other ``lost``
            amounts are estimates of the most that these may have used; ``lost_cost_usd`` is None if a price is not
            known.
    """

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    neurons: float | None = None
    cost_usd: float | None = 0.0
    unpriced: int = 0
    lost_calls: int = 0
    lost_input_tokens: int = 0
    lost_output_tokens: int = 0
    lost_cost_usd: float | None = 0.0
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        calls, unpriced = self.calls + other.calls, self.unpriced + other.unpriced
        known = unpriced < calls or not calls
        neurons = [one.neurons for one in (self, other) if one.neurons is not None]
        lost = [one.lost_cost_usd for one in (self, other) if one.lost_cost_usd is not None]
        return Spent(
            calls=calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            neurons=sum(neurons) if neurons else None,
            cost_usd=round((self.cost_usd or 0.0) + (other.cost_usd or 0.0), DECIMALS) if known else None,
            unpriced=unpriced,
            lost_calls=self.lost_calls + other.lost_calls,
            lost_input_tokens=self.lost_input_tokens + other.lost_input_tokens,
            lost_output_tokens=self.lost_output_tokens + other.lost_output_tokens,
            lost_cost_usd=round(sum(lost), DECIMALS) if len(lost) == 2 else None,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
        )

    def since(self, before: Spent) -> Spent:
        """What was spent after ``before``, an earlier state of the same sum."""
        calls, unpriced = self.calls - before.calls, self.unpriced - before.unpriced
        known = unpriced < calls or not calls
        lost = self.lost_cost_usd
        return Spent(
            calls=calls,
            input_tokens=self.input_tokens - before.input_tokens,
            output_tokens=self.output_tokens - before.output_tokens,
            neurons=None if self.neurons is None else self.neurons - (before.neurons or 0.0),
            cost_usd=round((self.cost_usd or 0.0) - (before.cost_usd or 0.0), DECIMALS) if known else None,
            unpriced=unpriced,
            lost_calls=self.lost_calls - before.lost_calls,
            lost_input_tokens=self.lost_input_tokens - before.lost_input_tokens,
            lost_output_tokens=self.lost_output_tokens - before.lost_output_tokens,
            lost_cost_usd=None if lost is None else round(lost - (before.lost_cost_usd or 0.0), DECIMALS),
            cached_tokens=self.cached_tokens - before.cached_tokens,
            cache_write_tokens=self.cache_write_tokens - before.cache_write_tokens,
        )


def lost_text(calls: int) -> str:
    """How many calls were lost, in words."""
    return "1 call whose reply was lost" if calls == 1 else f"{calls:,} calls whose replies were lost"
