"""The lanes of calls: other ways to be answered than at once at list price, and what they cost.

What a reply says decides the lane, not what was asked for: a service may answer a flex call at list price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llmdo.backends.lanes.windows import PROMISED_S
from llmdo.backends.requests import ChatRequest, RawRequest, Request
from llmdo.backends.responses import ChatResponse, Price, RawResponse, Response

# Names of a lane: what ``service_tier`` is in requests and replies → the lane; any other is the list price.
_TIERS = {"batch": "batch", "fast": "priority", "flex": "flex", "priority": "priority"}
WINDOWS = frozenset(PROMISED_S)
# How genai-prices distinguishes lanes.
CONTEXTS: Mapping[str, Mapping[str, str]] = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}


@dataclass(frozen=True, slots=True)
class _Factor:
    """What a lane costs of the list price, and where that is published; ``stacks``: also of cached tokens' price."""

    of_list: float
    source: str
    date: str
    stacks: bool = True


_OPENAI = "developers.openai.com/api/docs/guides"
# By genai-prices' name of the provider and the lane; where a model has a price of its own for the lane, that holds.
# Not here: Google, Together and xAI, whose discounts differ by model, and Groq's flex, which costs the list price.
_FACTORS: Mapping[tuple[str, str], _Factor] = {
    ("openai", "batch"): _Factor(0.5, f"{_OPENAI}/batch", "2026-11-30"),
    ("openai", "flex"): _Factor(0.5, f"{_OPENAI}/flex-processing", "2026-11-30"),
    ("openai", "2h"): _Factor(0.7, f"{_OPENAI}/flex-processing", "2026-11-30"),
    ("openai", "8h"): _Factor(0.6, f"{_OPENAI}/flex-processing", "2026-11-30"),
    ("anthropic", "batch"): _Factor(0.5, "platform.claude.com/docs/en/about-claude/pricing", "2026-10-14"),
    ("groq", "batch"): _Factor(0.5, "console.groq.com/docs/batch", "2026-10-14", stacks=False),
    ("mistral", "batch"): _Factor(0.5, "docs.mistral.ai/capabilities/batch", "2026-10-14"),
}
_NOT_RATES = frozenset({"unit", "above", "source", "date", "lanes"})
_RATES = tuple(one.name for one in fields(Price) if one.name not in _NOT_RATES)


def asked_lane(request: Request) -> str:
    """The lane that a request asks for; "" for the list price."""
    asked: Mapping[str, Any] = {}
    if isinstance(request, ChatRequest):
        asked = request.parameters
    elif isinstance(request, RawRequest):
        asked = request.input
    return _TIERS.get(str(asked.get("service_tier")), "")


def asked_window(request: Request, lane: str) -> str:
    """The window that a request is asked in, where calls are made in ``lane``; "" for one that names its tier."""
    given = request.input if isinstance(request, RawRequest) else request.parameters
    return lane if lane in WINDOWS and given.get("service_tier") is None else ""


def with_tier(request: Request, tier: str, *, whatever: bool = False) -> Request:
    """A chat, or a body of /v1/responses, that asks for a ``service_tier``; ``whatever``: also where it names one."""
    if isinstance(request, ChatRequest) and (whatever or request.parameters.get("service_tier") is None):
        return replace(request, parameters={**request.parameters, "service_tier": tier})
    body = request.input if isinstance(request, RawRequest) and request.path == "responses" else None
    if isinstance(request, RawRequest) and body is not None and (whatever or body.get("service_tier") is None):
        return replace(request, input={**body, "service_tier": tier})
    return request


def dearest_lane(request: Request) -> str:
    """The lane whose price a request may cost at most: a call that asks for a cheaper one may be billed at list."""
    return lane if (lane := asked_lane(request)) == "priority" else ""


def billed_lane(response: Response) -> str:
    """The lane that a call was billed as, by what its reply names; a service that does not know the lane names none.

    Windows, which no reply names, are not asked for by calls: see llmdo.backends.lanes.windows.
    """
    said: Mapping[str, Any] = {}
    if isinstance(response, ChatResponse):
        said = {**response.details, **response.body}
    elif isinstance(response, RawResponse) and isinstance(response.result, Mapping):
        said = response.result
    usage = said.get("usage")
    tier = said.get("service_tier") or (usage.get("service_tier") if isinstance(usage, Mapping) else None)
    return _TIERS.get(str(tier), "")


def discounted(price: Price, publisher: str, lane: str) -> Price | None:
    """A list price in a lane by what its publisher says of all models; None where it says nothing."""
    factor = _FACTORS.get((publisher, lane))
    if factor is None:
        return None
    less = times(price if factor.stacks else replace(price, cached_input=None), factor.of_list)
    return replace(less, source=f"{price.source}, {factor.source}", date=factor.date)


def times(price: Price, factor: float) -> Price:
    """A price whose rates are a part of another one's. What is paid for each call besides stays."""
    rates = {name: getattr(price, name) for name in _RATES if name != "request"}
    less = {name: rate * factor for name, rate in rates.items() if rate is not None}
    return replace(price, **less, above=tuple((tokens, times(one, factor)) for tokens, one in price.above))
