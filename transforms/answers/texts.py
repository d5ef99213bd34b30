"""The texts of one line, which are embedded by whatever calls have room for them: their results put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import ModelError, ModelUnusable, Retryable, StopRun
from llmdo.backends.limits.arrays import joined
from llmdo.backends.responses import EmbedResponse

# An error of these is not the text's own: the line ends by it, and what its other texts have is in the ledger.
_OF_THE_LINE = (StopRun, ModelUnusable, Retryable)


@dataclass(frozen=True, slots=True)
class Embedded:
    """How the texts of a line ended, as one Done; of a text that has no vector it is empty, and ``errors`` says why.

    Attributes:
        parts: the responses of the texts that have a vector; what they cost may differ.
    """

    done: Done
    errors: Mapping[int, ModelError] = field(default_factory=dict)
    parts: tuple[EmbedResponse, ...] = ()


class LineTexts:
    """The results of ``count`` texts, as they come."""

    __slots__ = ("_ended", "_open")

    def __init__(self, count: int) -> None:
        self._ended: list[Done | None] = [None] * count
        self._open = count

    def add(self, index: int, done: Done) -> Embedded | None:
        """Takes one text's result in; the line's, when it was the last."""
        self._ended[index] = done
        self._open -= 1
        return None if self._open else _together([one for one in self._ended if one is not None])


def _together(ended: list[Done]) -> Embedded:
    """The line has an answer if one of its texts has a vector, and no other one could have one later."""
    errors = {index: done.error for index, done in enumerate(ended) if done.error is not None}
    parts = tuple(done.response for done in ended if isinstance(done.response, EmbedResponse))
    attempts, latency_s = max(done.attempts for done in ended), max(done.latency_s for done in ended)
    error = _worst(errors.values())
    if error is None and not parts:
        error = errors[0]
    if error is not None:
        return Embedded(Done(None, error, attempts, latency_s))
    response = joined(parts)
    vectors = iter(response.vectors)
    response = replace(
        response,
        vectors=tuple(next(vectors) if done.error is None else () for done in ended),
        warnings=(*response.warnings, *_missing(errors, len(ended))),
    )
    return Embedded(Done(response, None, attempts, latency_s), errors, parts)


def _worst(errors: Iterable[ModelError]) -> ModelError | None:
    """The error that ends the line, by the order of _OF_THE_LINE."""
    found = list(errors)
    return next((error for kind in _OF_THE_LINE for error in found if isinstance(error, kind)), None)


def _missing(errors: Mapping[int, ModelError], count: int) -> tuple[str, ...]:
    if not errors:
        return ()
    where = ", ".join(map(str, errors))
    if len(errors) == 1:
        return (f"1 of {count:,} texts has no vector: the one with index {where}",)
    return (f"{len(errors):,} of {count:,} texts have no vector: those with index {where}",)
