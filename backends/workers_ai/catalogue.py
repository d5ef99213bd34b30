"""Entries of Workers AI's list of models, GET /accounts/{account_id}/ai/models/search, as ModelInfo.

Properties: developers.cloudflare.com/workers-ai/models; their values are text, also ``"true"`` and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmdo.backends.http.reply_json import amount
from llmdo.backends.responses import ModelInfo, Price
from llmdo.backends.workers_ai.errors import PROVIDER
from llmdo.backends.workers_ai.models import takes_batches, takes_json_schema

_TOKENS = re.compile(r"per M (input|output|cached(?: input)?|input cached) tokens", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_CAPABILITIES: Mapping[str, str] = {
    "function_calling": "tools",
    "vision": "vision",
    "reasoning": "reasoning",
    "async_queue": "batch",
    "require_workers_paid": "paid plan only",
    "beta": "beta",
}


def model_info(entry: Mapping[str, Any]) -> ModelInfo:
    """One entry; whatever else stands in it than is documented says nothing."""
    name = str(entry["name"])
    pairs = [item for item in _listed(entry.get("properties")) if isinstance(item, dict) and "property_id" in item]
    properties = {str(item["property_id"]): item.get("value") for item in pairs}
    window = str(properties.get("context_window") or "")
    task = entry.get("task")
    return ModelInfo(
        name=f"{PROVIDER}/{name}",
        task=str(task.get("name") or "") if isinstance(task, dict) else "",
        description=str(entry.get("description") or ""),
        context_tokens=int(window) if window.isdecimal() else None,
        properties=properties,
        price=_price(properties.get("price")),
        capabilities=frozenset(_capabilities(name, properties)),
        deprecated=_deprecated(entry, properties),
    )


def _price(listed: Any) -> Price | None:
    """By the million tokens where any row is; else what the first row says, with its unit."""
    rows = [row for row in _listed(listed) if isinstance(row, dict) and amount(row.get("price")) is not None]
    tokens: dict[str, float] = {}
    for row in rows:
        matched = _TOKENS.fullmatch(str(row.get("unit")).strip())
        if matched:
            way = "cached_input" if "cached" in matched[1].lower() else matched[1].lower()
            tokens[way] = float(row["price"])
    if tokens:
        return Price(tokens.get("input"), tokens.get("output"), tokens.get("cached_input"))
    return Price(float(rows[0]["price"]), unit=str(rows[0].get("unit")).removeprefix("per ")) if rows else None


def _capabilities(name: str, properties: Mapping[str, Any]) -> Iterator[str]:
    for property_id, capability in _CAPABILITIES.items():
        if str(properties.get(property_id)).lower() == "true":
            yield capability
    if takes_batches(name):  # bge-m3's entry lacks the property, and its schema has it
        yield "batch"
    if takes_json_schema(name):
        yield "json"


def _deprecated(entry: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    date = _DATE.match(str(properties.get("planned_deprecation_date") or entry.get("deprecated_at") or ""))
    return date[0] if date else ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
