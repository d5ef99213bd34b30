"""Checks what a user has set: everything that is wrong is reported at once, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmdo.pipelines.shown import name_of, options_of
from llmdo.settings.environment import MissingSettings
from llmdo.storage.field_problems import expected

M = TypeVar("M", bound=BaseModel)


class UsageError(Exception):
    """The options do not fit together; ``problems`` has one sentence for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def checked(kind: type[M], given: Mapping[str, Any], reads: Iterable[Callable[[], object] | None]) -> M:
    """Options of this kind; each of ``reads`` reads something of the environment that they need.

    Raises UsageError with everything that is wrong with both.
    """
    problems: list[str] = []
    options: M | None = None
    try:
        options = kind(**given)
    except ValidationError as error:
        problems += [_sentence(kind, detail) for detail in error.errors()]
    for read in dict.fromkeys(reads):
        try:
            if read is not None:
                read()
        except MissingSettings as missing:
            problems += [p for p in missing.problems if p not in problems]
    if problems or options is None:
        raise UsageError(problems)
    return options


def _sentence(kind: type[BaseModel], detail: ErrorDetails) -> str:
    message, place = expected(detail), [str(part) for part in detail["loc"]]
    if not place:
        return message
    options = options_of(kind)
    option = next((options[part] for part in place[:2] if part in options), None)
    if option is None:
        return f"{name_of(place[-1])} {detail['input']!r}: {message}"
    if option.shown.unquoted:
        return f"{option.name}: {message}"
    # A value where a secret's resource name should be is likely the secret itself.
    said = str(detail["input"]).partition("=")[0] if option.shown.near_secret else detail["input"]
    return f"{option.name} {said!r}: {message}"
