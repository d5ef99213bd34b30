"""What a call used, in tokens and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter


@dataclass(slots=True, unsafe_hash=True)
class Usage:
    """What a request used, over all its tries whose usage is known.

    Attributes:
        input_tokens: what was sent; all other tokens of the input are a part of these.
        output_tokens: what came back; all other tokens of the output are a part of these.
        cached_tokens: of the input, read from the provider's cache.
        reasoning_tokens: of the output, those of the model's thinking.
        neurons: of Workers AI, if it reports them; else None.
        cache_write_tokens: of the input, written to the provider's cache.
        input_audio_tokens, output_audio_tokens: of the input and of the output, those of sound.
        cache_write_1h_tokens: of ``cache_write_tokens``, those that are kept for an hour.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    neurons: float | None = None
    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_write_1h_tokens: int = 0


_COUNTS = tuple(one.name for one in fields(Usage) if one.name != "neurons")
_counts = attrgetter(*_COUNTS)


def added(one: Usage, other: Usage) -> Usage:
    """The usage of both."""
    neurons = [part.neurons for part in (one, other) if part.neurons is not None]
    counts = map(int.__add__, _counts(one), _counts(other))
    return Usage(**dict(zip(_COUNTS, counts, strict=True)), neurons=sum(neurons) if neurons else None)


def share(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Usage in parts by weight; what does not divide goes to the first, so that the parts' sum is the whole."""
    total = sum(weights) or 1
    counts = [_parts(whole, weights, total) for whole in _counts(usage)]
    neurons = [None if usage.neurons is None else usage.neurons * weight / total for weight in weights]
    if usage.neurons is not None and not sum(weights):
        neurons[0] = usage.neurons
    return [
        Usage(**dict(zip(_COUNTS, part, strict=True)), neurons=some)
        for *part, some in zip(*counts, neurons, strict=True)
    ]


def _parts(whole: int, weights: Sequence[int], total: int) -> list[int]:
    parts = [whole * weight // total for weight in weights]
    parts[0] += whole - sum(parts)
    return parts
