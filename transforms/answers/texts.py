"""Joins the results of one line's texts, which may be embedded by different calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import ModelError, ModelUnusable, Retryable, StopRun
from llmdo.backends.limits.arrays import joined
from llmdo.backends.responses import EmbedResponse

# Errors that are not a text's own: they end the line, and the vectors of its other texts are in the ledger.
_OF_THE_LINE = (StopRun, ModelUnusable, Retryable)


@dataclass(slots=True)
class Embedded:
    """The results of a line's texts as one Done; a text without a vector has an empty one, and ``errors`` says why.

    Attributes:
        parts: the responses of the texts that have a vector; they may differ in cost.
    """

    done: Done
    errors: Mapping[int, ModelError] = field(default_factory=dict)
    parts: tuple[EmbedResponse, ...] = ()


class LineTexts:
    """Collects the results of ``count`` texts."""

    __slots__ = ("_ended", "_open")

    def __init__(self, count: int) -> None:
        self._ended: list[Done | None] = [None] * count
        self._open = count

    def add(self, index: int, done: Done) -> Embedded | None:
        """Takes one text's result; returns the line's result after the last one."""
        self._ended[index] = done
        self._open -= 1
        if self._open:
            return None
        return _alone(done) if len(self._ended) == 1 else _together([one for one in self._ended if one is not None])


def _alone(done: Done) -> Embedded:
    """The result of a line with one text, as most have: nothing needs to be joined."""
    return Embedded(done, parts=(done.response,) if isinstance(done.response, EmbedResponse) else ())


def _together(ended: list[Done]) -> Embedded:
    """A line has an answer if a text has a vector and no other text could get one later."""
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
