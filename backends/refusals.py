"""What a refusal means: rows of the providers' tables of errors, and the sentence that users read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backends.errors import About, ModelError

_SAID = 300  # characters of the provider's own text that go into our sentence
_PAGE = 100_000  # characters of a page that are read
_UNSEEN = re.compile(r"(script|style)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a refusal is, in words, and the class that says how to go on. ``about``: see ModelError."""

    error: type[ModelError]
    what: str
    remedy: str
    about: About | None = None


def sentence(model: str, meaning: Meaning, numbers: str, said: str) -> str:
    """The error's message: what happened to which model, the codes, the remedy, and the provider's own words."""
    text = f"{model}: {meaning.what} ({numbers}): {meaning.remedy}"
    return f"{text}; the service said {said[:_SAID]!r}" if said else text


def page_text(page: str) -> str:
    """The words of an HTML page, or of any text, on one line; of a long one, those of its begin."""
    # By hand: a regular expression looks for the end of each tag anew, also where none has one.
    page = page[:_PAGE]
    lower, words, at = page.lower(), [], 0
    while (opened := page.find("<", at)) >= 0 and (closed := page.find(">", opened)) >= 0:
        words.append(page[at:opened])
        at = closed + 1
        unseen = _UNSEEN.match(page, opened + 1)
        if unseen:
            ended = lower.find(f"</{unseen[1].lower()}>", at)
            at = ended if ended >= 0 else len(page)
    return one_line(" ".join([*words, page[at:]]))


def one_line(text: str) -> str:
    """The words of a text with one blank between them; of a long one, those of its begin."""
    return " ".join(text[:_PAGE].split())
