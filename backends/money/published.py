"""Prices that are published for models of many providers: pydantic/genai-prices, whose data come with its releases.

For services that tell no prices themselves. Nothing is fetched: another release of the package has other prices.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from llmdo.backends.money.lanes import CONTEXTS, discounted
from llmdo.backends.responses import Price

# What genai-prices calls a rate, per million tokens → what Price calls it.
_RATES = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "input_audio",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "output_audio",
}
_REQUESTS = "requests_kcount"
# An AI Gateway's address names the provider: developers.cloudflare.com/ai-gateway/usage/providers.
_GATEWAY = re.compile(r"/v1/[^/]+/[^/]+/([^/]+)")
_GATEWAY_HOST = "gateway.ai.cloudflare.com"
_GATEWAY_NAMES = {
    "google-ai-studio": "google",
    "perplexity-ai": "perplexity",
    "grok": "x-ai",
    "workers-ai": "cloudflare",
    "xai": "x-ai",
}
# When the releases came out (pypi.org/project/genai-prices): they do not say.
_RELEASED = {"0.2.3": "2026-11-10"}
# Some prices depend on the hour of the day. Seconds.
_GOOD_FOR = 60.0

NO_CONTEXT: Mapping[str, str] = MappingProxyType({})


def published_price(
    publisher: str | None,
    model: str,
    url: str = "",
    context: Mapping[str, str] = NO_CONTEXT,
    now: float | None = None,
    lane: str = "",
) -> Price | None:
    """What a model costs by the token now, or at ``now`` (Unix time in seconds); None if nobody publishes it.

    Args:
        publisher: genai-prices' name of the provider; None: the one that ``url`` belongs to.
        model: as the provider calls it.
        url: the address of an API, where there is no ``publisher``; "": any provider's price of this model.
        context: what else decides: ``{"service_tier": "flex"}``, ``{"processing": "batch"}``.
        now: see above.
        lane: what the call is billed as, see ChatResponse; None is returned for one that nobody publishes a price for.
    """
    at = time.time() if now is None else now
    context = {**CONTEXTS.get(lane, NO_CONTEXT), **context}
    return _price_at(publisher, model, url, tuple(sorted(context.items())), lane, int(at // _GOOD_FOR))


@lru_cache(maxsize=4096)
def _price_at(
    publisher: str | None, model: str, url: str, context: tuple[tuple[str, str], ...], lane: str, minute: int
) -> Price | None:
    # Not at the top: a tenth of a second that a run whose provider tells its prices does without.
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415  see above

    if publisher is None and url:
        publisher, model = _by_gateway(url, model)
    elif publisher == "cloudflare" and not model.startswith("@"):
        publisher, model = _by_owner(model)
    try:
        provider, found = get_snapshot().find_provider_model(
            model, None, publisher, url if publisher is None and url else None
        )
    except LookupError:
        return None
    if publisher is None and url and not _is_at(url, provider.api_pattern):
        return None
    when = datetime.fromtimestamp(minute * _GOOD_FOR, UTC)
    rates = vars(found.get_prices(when, dict(context) or None))
    if rates.get("input_mtok") is None and rates.get("output_mtok") is None:
        return None
    price = _price(rates)
    return price if not lane or _has_own(found, dict(context), when) else discounted(price, provider.id, lane)


def _has_own(model: Any, context: Mapping[str, str], when: datetime) -> bool:
    """Whether a model has rates of its own for what ``context`` says."""
    return any(
        variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(when))
        for variant in model.price_variants or ()
    )


def _is_at(url: str, pattern: str) -> bool:
    """Whether an address is one of the pattern's, and not of a host whose name only begins like it."""
    found = re.match(pattern, url)
    return found is not None and url[found.end() :][:1] in ("", "/", ":", "?")


def _by_gateway(url: str, model: str) -> tuple[str | None, str]:
    """Provider and model by the address of an AI Gateway."""
    parts = urlsplit(url)
    named = _GATEWAY.match(parts.path) if parts.hostname == _GATEWAY_HOST else None
    if named is None:
        return None, model
    name = named[1]
    return _by_owner(model) if name == "compat" else (_GATEWAY_NAMES.get(name, name), model)


def _by_owner(model: str) -> tuple[str, str]:
    """Provider and model by a name such as ``openai/gpt-5``, as Cloudflare has it for models of others."""
    owner, _, model = model.partition("/")
    return _GATEWAY_NAMES.get(owner, owner), model


def _price(rates: Mapping[str, Any]) -> Price:
    """A Price with a tier for each number of tokens from which a rate changes."""
    starts = sorted({tier.start for rate in rates.values() for tier in getattr(rate, "tiers", ())})
    above = tuple((start, _tier(rates, start)) for start in starts)
    release = version("genai-prices")
    source, date = f"genai-prices {release}", _RELEASED.get(release, "")
    return Price(**_tier_rates(rates, -1), above=above, source=source, date=date)


def _tier(rates: Mapping[str, Any], start: int) -> Price:
    return Price(**_tier_rates(rates, start))


def _tier_rates(rates: Mapping[str, Any], start: int) -> dict[str, Any]:
    """The rates of a call whose input has more than ``start`` tokens."""
    found = {ours: _rate(rates[name], start) for name, ours in _RATES.items() if rates.get(name) is not None}
    if rates.get(_REQUESTS) is not None:
        found["request"] = _rate(rates[_REQUESTS], start) / 1000
    return found


def _rate(rate: Any, start: int) -> float:
    if isinstance(rate, Decimal):
        return float(rate)
    return float(next((tier.price for tier in reversed(rate.tiers) if start >= tier.start), rate.base))
