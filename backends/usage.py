"""What a call used, in tokens and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """What a request used, in tokens, over all its tries whose usage is known; ``neurons`` if Workers AI reports them.

    ``cached_tokens`` are part of the input, ``reasoning_tokens`` of the output.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    neurons: float | None = None


def added(one: Usage, other: Usage) -> Usage:
    """The usage of both."""
    neurons = [part.neurons for part in (one, other) if part.neurons is not None]
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
        sum(neurons) if neurons else None,
    )


def share(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Usage in parts by weight; what does not divide goes to the first, so that the parts' sum is the whole."""
    total = sum(weights) or 1
    inputs, outputs, cached, thought = (
        _parts(whole, weights, total)
        for whole in (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens)
    )
    neurons = [None if usage.neurons is None else usage.neurons * weight / total for weight in weights]
    if usage.neurons is not None and not sum(weights):
        neurons[0] = usage.neurons
    return [Usage(*part) for part in zip(inputs, outputs, cached, thought, neurons, strict=True)]


def _parts(whole: int, weights: Sequence[int], total: int) -> list[int]:
    parts = [whole * weight // total for weight in weights]
    parts[0] += whole - sum(parts)
    return parts
