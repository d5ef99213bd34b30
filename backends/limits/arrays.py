"""Arrays of texts: how many a service takes in one call, and responses taken apart and put together.

The limit is learnt from refusals: the service names it, or halves are answered.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from llmdo.backends.responses import EmbedResponse
from llmdo.backends.usage import added, share

_log = logging.getLogger(__name__)

# "batch size 64 > maximum allowed batch size 32", "at most 100 requests can be in one batch", "it should not be larger
# than 10", "max number of inputs is 16", "List should have at most 32 items", "数组最大不得超过64条".
_COUNTED = re.compile(
    r"batch|array|list\b|inputs?\b|texts\b|items?\b|requests\b|documents\b|elements\b|strings\b|contents\b|条",
    re.IGNORECASE,
)
_MOST = re.compile(
    r"(?:max(?:imum|\.)?|at most|limit(?:ed)?|exceeds?|no more than|up to|"
    r"(?:more|larger|greater|bigger|longer|higher) than|less than or equal to|between \d+ and|"
    r"too (?:many|long|large)|<=|≤|\s>\s|超过|最大)(?P<between>[^\d]{0,60}?)"
    r"(?P<number>\d[\d,]*)(?!\d|\.\d)(?!\s*(?:tokens?|characters?|chars|bytes?|[km]i?b)\b)",
    re.IGNORECASE,
)
# That there are too many, and not how many there may be.
_TOO_MANY = re.compile(
    r"too many (?:inputs|texts|items|requests in|documents|elements|strings)|"
    r"(?:batch|array)(?: size)?(?: is)? too (?:large|long|big)|split [\w ]{0,20}batches|smaller batch",
    re.IGNORECASE,
)
_OF_A_TEXT = re.compile(r"token|character|context|sequence|dimension|prompt|second|minute", re.IGNORECASE)
_STATUS = re.compile(r"HTTP \d{3}")
_SURE = 2  # arrays whose halves were both answered: one may have been refused by chance


def named_limit(message: str, texts: Sequence[str]) -> int | None:
    """The limit of texts that a refusal of an array names; None if it names none below the array's length.

    What the message quotes of a text does not count.
    """
    message = _STATUS.sub("", message)
    if not _COUNTED.search(message):
        return None
    for found in _MOST.finditer(message):
        number = int(found["number"].replace(",", ""))
        quoted = any(found[0] in text for text in texts)
        if 1 <= number < len(texts) and not quoted and not _OF_A_TEXT.search(found["between"]):
            return number
    return None


@dataclass(slots=True, eq=False)
class Halved:
    """An array that was refused and is sent in halves: how many of its texts have been answered with their half."""

    size: int
    answered: int = 0


class ArrayLimits:
    """Limits that were learned, by provider and model. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._most: dict[tuple[str, str], int] = {}
        self._halved: Counter[tuple[str, str]] = Counter()

    def most(self, provider: str, model: str) -> int | None:
        """The most texts of one call; None if nothing was learned."""
        return self._most.get((provider, model))

    def refused(self, provider: str, model: str, texts: Sequence[str], message: str) -> int | None:
        """Learns from a refused array's message; returns the most texts of later calls, or None if it does not say."""
        number = named_limit(message, texts)
        if number is None and len(texts) > 1 and _TOO_MANY.search(message) and not _OF_A_TEXT.search(message):
            number = len(texts) // 2
        if number is not None:
            self._learn(provider, model, number)
        return number

    def answered(self, provider: str, model: str, size: int, halved: Halved | None) -> None:
        """Learns that an array of ``size`` was answered, perhaps half of one that was refused.

        Where both halves are, none of the texts was to blame. What is answered above the limit shows that it is none.
        """
        key = (provider, model)
        if key in self._most and size > self._most[key]:
            self._most[key] = size
        if halved is not None:
            halved.answered += size
            if halved.answered == halved.size:
                self._halved[key] += 1
                if self._halved[key] >= _SURE:
                    self._learn(provider, model, max(size, halved.size - size))

    def _learn(self, provider: str, model: str, number: int) -> None:
        if self._most.get((provider, model), number + 1) > number:
            _log.info("%s/%s takes %d texts a call: longer arrays are parted", provider, model, number)
            self._most[provider, model] = number


def one_each(response: EmbedResponse, texts: Sequence[str]) -> list[EmbedResponse]:
    """One response for each text, with its share of the usage."""
    if response.parts:
        return list(response.parts)
    shares = share(response.usage, [len(text) for text in texts])
    return [
        replace(response, vectors=(vector,), usage=part) for vector, part in zip(response.vectors, shares, strict=True)
    ]


def as_tuples(response: EmbedResponse) -> EmbedResponse:
    """A response whose vectors are plain tuples of numbers, whatever the provider's code made of its reply."""
    return replace(
        response,
        vectors=tuple(tuple(vector) for vector in response.vectors),
        parts=tuple(as_tuples(part) for part in response.parts),
    )


def joined(parts: Sequence[EmbedResponse]) -> EmbedResponse:
    """The vectors of several responses as one response; ``shared`` where all are. Model and ids are the first one's.

    Usage is counted once: that of the responses that are not shared, if there are any.
    """
    paid = [one.usage for one in parts if not one.shared]
    return replace(
        parts[0],
        vectors=tuple(vector for one in parts for vector in one.vectors),
        usage=reduce(added, paid or [one.usage for one in parts]),
        warnings=tuple(dict.fromkeys(warning for one in parts for warning in one.warnings)),
        shared=not paid,
        parts=(),
    )
