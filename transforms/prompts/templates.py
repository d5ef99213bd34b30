"""Prompts with fields, such as ``Summarise: {text}``, which are filled in from each line.

A field is a name in braces and nothing else: no attributes, no indexes, no code. ``{{`` and ``}}`` stand for braces;
braces that do not form a field, as in ``{"a": 1}``, stay as they are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

_NAME = r"[^\W\d][\w-]*+"
_PARTS = re.compile(rf"{{{{|}}}}|{{({_NAME})}}")
# Looks like a field of str.format(), but is not one here: {}, {0}, {a.b}, {a[0]}, {a!r}, {a:>9}, { a }.
_NEARLY = re.compile(rf"{{(?!{_NAME}}})\s*+(?:\d*+|{_NAME}\s*+(?:[.\[!:][^{{}}\"\n]*+)?)}}")


class MissingField(LookupError):
    """A line has no value for a field of a template; the argument is the field's name."""


@functools.lru_cache(maxsize=64)
def fields_of(template: str) -> frozenset[str]:
    """The names of a template's fields.

    >>> sorted(fields_of('{question} in {language}, as {{json}}'))
    ['language', 'question']
    """
    return frozenset(name for _, name in _split(template) if name)


def fill_in(template: str, values: Mapping[str, Any]) -> str:
    """The text with each field's value: strings as they are, other values as JSON.

    Raises MissingField if a field is missing or null.

    >>> fill_in('{{{a}}} {b}', {'a': 'x {b}', 'b': [1]})
    '{x {b}} [1]'
    """
    filled = []
    for text, name in _split(template):
        filled.append(text)
        if name:
            value = values.get(name)
            if value is None:
                raise MissingField(name)
            filled.append(value if isinstance(value, str) else to_json(value).decode())
    return "".join(filled)


def template_problem(template: str) -> str | None:
    """Why a template is likely not what its author meant, or None."""
    nearly = _NEARLY.search(template.replace("{{", "").replace("}}", ""))
    if nearly:
        return f"{nearly[0]} is not a field: a field is a name in braces, like {{text}}; write {{{{ and }}}} for braces"
    if not fields_of(template):
        return "it has no field such as {text}, so all lines would be asked the same"
    return None


@functools.lru_cache(maxsize=64)
def _split(template: str) -> tuple[tuple[str, str | None], ...]:
    """Pieces of text, each with the name of the field that follows it, or None."""
    pieces: list[tuple[str, str | None]] = []
    text, at = "", 0
    for match in _PARTS.finditer(template):
        text += template[at : match.start()]
        at = match.end()
        if match[1] is None:
            text += match[0][0]
        else:
            pieces.append((text, match[1]))
            text = ""
    return (*pieces, (text + template[at:], None))
