"""What a refusal means: rows of the providers' tables of errors, and the sentence that users read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.errors import ModelError

_SAID = 300  # characters of the provider's own text that go into our sentence
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a refusal is, in words, and the class that says how to go on."""

    error: type[ModelError]
    what: str
    remedy: str


def sentence(model: str, meaning: Meaning, numbers: str, said: str) -> str:
    """The error's message: what happened to which model, the codes, the remedy, and the provider's own words."""
    text = f"{model}: {meaning.what} ({numbers}): {meaning.remedy}"
    return f"{text}; the service said {said[:_SAID]!r}" if said else text


def page_text(page: str) -> str:
    """The words of an HTML page, or of any text, on one line."""
    return " ".join(_TAGS.sub(" ", page).split())
