"""Entries of OpenAI's list of models, and of those of vLLM, llama.cpp and OpenRouter, which hold more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmdo.backends.http.reply_json import mapping
from llmdo.backends.responses import ModelInfo, Price

_OURS = frozenset({"id", "object", "description", "pricing", "shutdown_date"})
# Parameters that OpenRouter lists for a model → capability.
_BY_PARAMETER = {"tools": "tools", "reasoning": "reasoning", "structured_outputs": "json", "response_format": "json"}


def model_info(entry: Mapping[str, Any], provider: str) -> ModelInfo:
    """One entry of ``data``; context window, price and capabilities where a server lists them."""
    context = next((window for window in _windows(entry) if isinstance(window, int) and window > 0), None)
    return ModelInfo(
        name=f"{provider}/{entry['id']}",
        description=str(entry.get("description") or ""),
        context_tokens=context,
        properties={name: value for name, value in entry.items() if name not in _OURS},
        price=_price(mapping(entry.get("pricing"))),
        capabilities=frozenset(_capabilities(entry)),
        deprecated=str(entry.get("shutdown_date") or ""),
    )


def _windows(entry: Mapping[str, Any]) -> Iterator[Any]:
    yield entry.get("context_length")  # OpenRouter, llama.cpp's router
    yield entry.get("max_model_len")  # vLLM
    yield entry.get("context_window")
    yield mapping(entry.get("meta")).get("n_ctx")  # llama.cpp: what it was started with
    yield mapping(entry.get("meta")).get("n_ctx_train")


def _price(pricing: Mapping[str, Any]) -> Price | None:
    """OpenRouter's dollars for one token, as text."""
    price = Price(
        _per_million(pricing.get("prompt")),
        _per_million(pricing.get("completion")),
        _per_million(pricing.get("input_cache_read")),
    )
    return None if price.input is None and price.output is None else price


def _per_million(dollars: Any) -> float | None:
    try:
        price = round(float(dollars) * 1e6, 6)
    except (TypeError, ValueError, OverflowError):
        return None
    return price if 0 <= price < float("inf") else None


def _capabilities(entry: Mapping[str, Any]) -> Iterator[str]:
    parameters = entry.get("supported_parameters")
    for parameter in parameters if isinstance(parameters, list) else []:
        if parameter in _BY_PARAMETER:
            yield _BY_PARAMETER[parameter]
    modalities = mapping(entry.get("architecture")).get("input_modalities")
    if isinstance(modalities, list) and "image" in modalities:
        yield "vision"
