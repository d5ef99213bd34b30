"""Prices that the user names: those of a contract, or of a server that nobody else has a price for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any

from llmdo.backends.money.lanes import CONTEXTS, WINDOWS, times
from llmdo.backends.responses import Price

OWN_SOURCE = "--price-file"
_ABOVE = "above"
_LANES = "lanes"
_KNOWN_LANES = (*CONTEXTS, *sorted(WINDOWS))
_RATES = tuple(one.name for one in fields(Price) if one.name not in ("unit", "source", "date", _ABOVE, _LANES))
# (PROVIDER/MODEL or a glob of them, price); the first that matches holds.
OwnPrices = tuple[tuple[str, Price], ...]


def own_prices(given: Mapping[str, Any]) -> OwnPrices:
    """Prices from ``{"PROVIDER/MODEL": {"input": USD, "output": USD, …}}``, by the million tokens; see Price.

    ``above`` is a list of further prices with ``tokens``, and ``lanes`` an object of prices by lane, or of factors such
    as 0.5; what these do not name is as here. Raises ValueError.
    """
    if not given:
        raise ValueError('it names no model: write {"PROVIDER/MODEL": {"input": 0.15, "output": 0.6}}')
    return tuple((_pattern(name), _with_lanes(name, rates)) for name, rates in given.items())


def own_price(prices: OwnPrices, provider: str, models: Sequence[str]) -> Price | None:
    """What the user says that the first of these models with a price costs."""
    for model in models:
        for pattern, price in prices:
            if fnmatchcase(f"{provider}/{model}", pattern):
                return price
    return None


def _pattern(name: str) -> str:
    if name.startswith("@"):
        return f"workers-ai/{name}"
    if "/" not in name and "*" not in name:
        raise ValueError(f"{name!r} is not PROVIDER/MODEL: write openai/{name}, or a glob such as 'openai/*'")
    return name


def _with_lanes(name: str, rates: Any) -> Price:
    given: Any = {}
    if isinstance(rates, dict):
        given = rates.get(_LANES, {})
        rates = {key: value for key, value in rates.items() if key != _LANES}
    price = replace(_price(name, rates), source=OWN_SOURCE)
    if not isinstance(given, dict) or not given.keys() <= set(_KNOWN_LANES):
        raise ValueError(f'{name}: {_LANES} must be an object of some of {", ".join(_KNOWN_LANES)}: {{"batch": 0.5}}')
    lanes = []
    for lane, one in given.items():
        if isinstance(one, dict):
            lanes.append((lane, replace(_price(f"{name}, {lane}", {**rates, **one}), source=OWN_SOURCE)))
        else:
            lanes.append((lane, times(price, _usd(name, lane, one))))
    return replace(price, lanes=tuple(lanes))


def _price(name: str, rates: Any) -> Price:
    if not isinstance(rates, dict):
        raise ValueError(f'{name}: its price must be an object such as {{"input": 0.15, "output": 0.6}}')
    unknown = [key for key in rates if key not in (*_RATES, _ABOVE)]
    if unknown:
        raise ValueError(
            f"{name}: there is no rate {unknown[0]!r}: write some of {', '.join(_RATES)}, {_ABOVE}, {_LANES}"
        )
    above = rates.get(_ABOVE, [])
    if not isinstance(above, list):
        raise ValueError(f'{name}: {_ABOVE} must be a list such as [{{"tokens": 200000, "input": 0.3}}]')
    if not any(key in rates for key in ("input", "output", "request")):
        raise ValueError(f"{name}: neither input nor output has a price, in US dollars for a million tokens")
    base: dict[str, Any] = {key: _usd(name, key, rates[key]) for key in _RATES if key in rates}
    tiers = sorted((_tier(name, base, one) for one in above), key=lambda tier: tier[0])
    return Price(**base, above=tuple(tiers))


def _tier(name: str, base: Mapping[str, Any], given: Any) -> tuple[int, Price]:
    tokens = given.get("tokens") if isinstance(given, dict) else None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise ValueError(
            f"{name}: each of {_ABOVE} needs tokens, the number of tokens of the input above which it holds"
        )
    own = {key: value for key, value in given.items() if key != "tokens"}
    unknown = [key for key in own if key not in _RATES]
    if unknown:
        raise ValueError(f"{name}: there is no rate {unknown[0]!r}: write some of {', '.join(_RATES)}")
    return tokens, Price(**{**base, **{key: _usd(name, key, value) for key, value in own.items()}})


def _usd(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: {key} must be a number of US dollars, not {str(value)[:40]!r}")
    return float(value)
