"""Types of option values, checked as they are read; an error states what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from llmdo.backends.errors import ModelNotFound
from llmdo.backends.json_mode.checks import schema_problem_now
from llmdo.backends.limits.concurrency_limit import Concurrency, given_concurrency
from llmdo.backends.money.lease import PeriodBudget
from llmdo.backends.money.own_prices import own_prices
from llmdo.backends.providers import split_model
from llmdo.settings.environment import MissingSettings, check_gateway, fits_a_header
from llmdo.settings.secrets import check_header, header_values
from llmdo.transforms.prompts.models import IGNORE, NONE, SAME_PROVIDER, rules_of
from llmdo.transforms.prompts.templates import template_problem

OPENAI = "openai"  # the provider whose calls have the user's own headers
_BUDGET = re.compile(
    r"(?P<sign>[^\w\s.+-]?)\s*(?P<number>[0-9][0-9,_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?:(?P<factor>[kKmMbB])(?=\s|tok))?\s*"
    r"(?P<unit>[^\s\d/]*)\s*(?:(?:/|\bper\b)\s*(?P<period>\w+))?"
)
_BUDGET_PERIODS = ("hour", "day", "week", "month")
# A schema without any of these allows everything, and is likely another file.
_SCHEMA_WORDS = frozenset({"type", "properties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "items"})


def _period_budget(value: Any) -> Any:
    """Reads ``5 USD/day`` and ``2M tokens/week``; a PeriodBudget stays as it is."""
    if isinstance(value, PeriodBudget):
        return value
    match = _BUDGET.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("write an amount and a period: '5 USD/day', '100 USD/month', '2M tokens/hour', '50 USD'")
    number, factor, unit, period = match["number"], (match["factor"] or "").upper(), match["unit"], match["period"]
    if period and period not in _BUDGET_PERIODS:
        raise ValueError(f"{period!r} is not a period: write {', '.join(_BUDGET_PERIODS)}, or none for always")
    amount = Decimal(number.replace(",", "")) * {"": 1, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000}[factor]
    if match["sign"] and not unit:
        unit = "USD" if match["sign"] == "$" else match["sign"]
    if unit.lower() in ("token", "tokens"):
        if amount < 1 or match["sign"]:
            raise ValueError("a budget is of 1 token at least, or of US dollars: '2M tokens/day', '5 USD/day'")
        return PeriodBudget(tokens=int(amount), period=period or "ever")
    if unit.upper() != "USD":
        given = unit or "no unit"
        raise ValueError(f"prices are in US dollars, and {given} is given: write '{number} USD/{period or 'day'}'")
    if amount <= 0:
        raise ValueError("a budget is more than nothing: write '5 USD/day', or leave it out")
    return PeriodBudget(float(amount), period=period or "ever")


def _known_model(value: str) -> str:
    try:
        return "/".join(split_model(value))
    except ModelNotFound as error:
        raise ValueError(error.message) from None


def _template(value: str) -> str:
    problem = template_problem(value) if value else None
    if problem:
        raise ValueError(problem)
    return value


def _known_models(value: tuple[str, ...]) -> tuple[str, ...]:
    rules = []
    for rule in value:
        pattern, equals, model = rule.rpartition("=")
        if not (equals and pattern and model):
            raise ValueError(
                f"{rule!r} has no pattern or no model: write GLOB=PROVIDER/MODEL, 'embed/*=@cf/baai/bge-m3'"
            )
        rules.append(f"{pattern}={_known_model(model)}")
    return tuple(rules)


def _line_models(value: str) -> str:
    rules_of(value)
    return value


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    if not _SCHEMA_WORDS & value.keys():
        raise ValueError(f"it is not a JSON Schema: it has none of {', '.join(sorted(_SCHEMA_WORDS))}")
    problem = schema_problem_now(json.dumps(value))
    if problem:
        raise ValueError(f"answers cannot be checked by it: {problem}")
    return value


def _prices(value: dict[str, Any]) -> dict[str, Any]:
    own_prices(value)
    return value


def _gateway(value: str) -> str:
    if not value or not fits_a_header(value):
        raise ValueError("write the gateway's id, or the URL that the dashboard gives")
    check_gateway(value)
    return value


def checked_header(value: str) -> str:
    """``NAME=VARIABLE``, with the name in lower case and the variable set. Raises ValueError."""
    try:
        header_values([value])
    except MissingSettings as missing:
        raise ValueError(str(missing)) from None
    return "=".join(check_header(value))


def check_header_models(headers: Sequence[str], models: Sequence[str], line_models: str = NONE) -> None:
    """Raises ValueError for headers that no call would carry: only OPENAI_BASE_URL gets them."""
    if (
        headers
        and line_models in (IGNORE, NONE, SAME_PROVIDER)
        and not any(name.startswith(f"{OPENAI}/") for name in models)
    ):
        raise ValueError(f"--header is for the service of OPENAI_BASE_URL: name one of its models, {OPENAI}/MODEL")


ModelName = Annotated[str, AfterValidator(_known_model)]  # provider/model
ModelRules = Annotated[tuple[str, ...], AfterValidator(_known_models)]  # GLOB=PROVIDER/MODEL
LineModels = Annotated[str, AfterValidator(_line_models)]  # see rules_of
Template = Annotated[str, AfterValidator(_template)]
JsonSchema = Annotated[dict[str, Any], AfterValidator(_schema)]
PriceFile = Annotated[dict[str, Any], AfterValidator(_prices)]
Calls = Annotated[Concurrency, BeforeValidator(given_concurrency), PlainSerializer(str)]
Budgeted = Annotated[PeriodBudget, BeforeValidator(_period_budget), PlainSerializer(str)]
Header = Annotated[str, AfterValidator(checked_header)]  # NAME=VARIABLE
Gateway = Annotated[str, AfterValidator(_gateway)]


def all_files(given: Mapping[str, Any]) -> tuple[str, ...]:
    """What ``files`` and ``input`` name, each one place or several."""
    named = (given.get(name) or () for name in ("files", "input"))
    return tuple(one for places in named for one in ((places,) if isinstance(places, str) else places))
