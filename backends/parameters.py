"""Parameters by OpenAI's names, and what a provider makes of them: nothing is left out without a warning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.limits.sizes import TOKEN_LIMITS, checked_token_limit, count_of

# Fields of a request that a backend fills in itself: no parameters.
OURS = frozenset({"model", "messages", "stream", "stream_options"})

# Inputs of native Workers AI models, which no other service knows.
WORKERS_AI_ONLY = frozenset({"lora", "raw", "image", "pooling", "truncate_inputs", "instruction"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a service takes the parameters of a chat.

    Attributes:
        known: all that it takes; None: whatever is not in ``unknown``.
        unknown: what it does not take, or takes without doing anything.
        renamed: OpenAI's name → its own.
        bounds: least and greatest value; what lies outside is moved to the bound.
        several: whether ``n`` answers can be asked for.
    """

    known: frozenset[str] | None = None
    unknown: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    several: bool = False


def translate(parameters: Mapping[str, Any], dialect: Dialect, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters as the service takes them, and a sentence for each that is left out or changed.

    The limit of tokens is not among them: see ``checked_token_limit``. Values that ask for nothing (null, false, an
    empty list) are left out silently.
    """
    body: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in parameters.items():
        if name in TOKEN_LIMITS or value is None:
            continue
        if name in OURS:
            if not _asks_nothing(value):
                warnings.append(f"{name} was left out: it is not a parameter of a request")
            continue
        taken = name not in dialect.unknown and (dialect.known is None or name in dialect.known)
        if name == "n":
            if dialect.several and value != 1:
                body["n"] = count_of(value) or value
            elif value != 1:
                warnings.append("n was left out: a request has one answer")
        elif not taken:
            if not _asks_nothing(value):
                warnings.append(f"{name} was left out: {model} cannot use it")
        else:
            kept = _within(value, dialect.bounds.get(name))
            if kept != value:
                warnings.append(f"{name} was changed from {value} to {kept}: {model} takes no other")
            body[dialect.renamed.get(name, name)] = kept
    limits = {name: limit for name in TOKEN_LIMITS if (limit := count_of(parameters.get(name))) is not None}
    if len(set(limits.values())) > 1 and (limit := checked_token_limit(parameters)):
        other = next(name for name, value in limits.items() if value != limit)
        warnings.append(f"{other} was left out: the answer has at most {limit} tokens by the other limit")
    return body, tuple(warnings)


def _asks_nothing(value: Any) -> bool:
    return value is False or value in ([], {}, "")


def _within(value: Any, bounds: tuple[float, float] | None) -> Any:
    if bounds is None or not isinstance(value, int | float):
        return value
    return min(max(value, bounds[0]), bounds[1])
