"""Whether a JSON value fits a JSON Schema (draft 2020-12), and if not, where and why.

All that bears on a model's answer is checked, with ``$ref`` inside the document; what is no check of a value (title,
format, default …) and what is not known here is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_DEPTH = 60  # of $ref in $ref: a schema that is no more than itself ends here
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and float(v).is_integer(),
}
_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], str], ...] = (
    ("minimum", lambda v, bound: v >= bound, "at least"),
    ("maximum", lambda v, bound: v <= bound, "at most"),
    ("exclusiveMinimum", lambda v, bound: v > bound, "above"),
    ("exclusiveMaximum", lambda v, bound: v < bound, "below"),
)
_LENGTHS: tuple[tuple[str, type[str] | type[list[Any]] | type[dict[str, Any]], str, int], ...] = (
    ("minLength", str, "characters", 1),
    ("maxLength", str, "characters", -1),
    ("minItems", list, "items", 1),
    ("maxItems", list, "items", -1),
    ("minProperties", dict, "fields", 1),
    ("maxProperties", dict, "fields", -1),
)


def problem_of(value: Any, schema: Any) -> str | None:
    """The first thing that is wrong with a value, in a sentence that starts with its place; None where it fits.

    >>> problem_of({"age": "3"}, {"properties": {"age": {"type": "integer"}}})
    "$.age must be integer, not '3'"
    """
    return next(_problems(value, schema, schema, "$", 0), None)


def _problems(value: Any, schema: Any, root: Any, at: str, depth: int) -> Iterator[str]:
    if schema is False:
        yield f"{at} must not be there"
    if not isinstance(schema, dict) or depth > _DEPTH:
        return
    if isinstance(schema.get("$ref"), str):
        yield from _problems(value, _referred(schema["$ref"], root), root, at, depth + 1)
    yield from _of_type(value, schema, at)
    yield from _of_size(value, schema, at)
    yield from _of_choices(value, schema, root, at, depth)
    if isinstance(value, dict):
        yield from _of_fields(value, schema, root, at, depth)
    if isinstance(value, list):
        yield from _of_items(value, schema, root, at, depth)


def _of_type(value: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    checks = [_TYPES[name] for name in names if isinstance(name, str) and name in _TYPES]
    nullable = value is None and schema.get("nullable") is True
    if checks and not nullable and not any(check(value) for check in checks):
        yield f"{at} must be {' or '.join(map(str, names))}, not {_short(value)}"
    options = schema.get("enum")
    if isinstance(options, list) and not any(_same(value, option) for option in options):
        yield f"{at} must be one of {_short(options)}, not {_short(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{at} must be {_short(schema['const'])}, not {_short(value)}"


def _of_size(value: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    if _is_number(value):
        for name, holds, words in _BOUNDS:
            if _is_number(schema.get(name)) and not holds(value, schema[name]):
                yield f"{at} must be {words} {schema[name]}, not {value}"
        step = schema.get("multipleOf")
        if _is_number(step) and step and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
            yield f"{at} must be a multiple of {step}, not {value}"
    for name, kind, words, sign in _LENGTHS:
        bound = schema.get(name)
        if isinstance(value, kind) and isinstance(bound, int) and (len(value) - bound) * sign < 0:
            yield f"{at} must have at {'least' if sign > 0 else 'most'} {bound} {words}, not {len(value)}"
    pattern = schema.get("pattern")
    if isinstance(value, str) and isinstance(pattern, str) and not _found(pattern, value):
        yield f"{at} must match {pattern!r}, as {_short(value)} does not"


def _of_choices(value: Any, schema: Mapping[str, Any], root: Any, at: str, depth: int) -> Iterator[str]:
    def fits(option: Any) -> bool:
        return next(_problems(value, option, root, at, depth + 1), None) is None

    for option in _listed(schema.get("allOf")):
        yield from _problems(value, option, root, at, depth + 1)
    for name in ("anyOf", "oneOf"):
        options = _listed(schema.get(name))
        fitting = sum(map(fits, options))
        if options and not fitting:
            first = next(_problems(value, options[0], root, at, depth + 1))
            yield first if len(options) == 1 else f"{at} fits none of its {len(options)} alternatives ({first})"
        if name == "oneOf" and fitting > 1:
            yield f"{at} must fit one of its alternatives, and fits {fitting}"
    if "not" in schema and fits(schema["not"]):
        yield f"{at} must not be {_short(value)}"


def _of_fields(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, at: str, depth: int) -> Iterator[str]:
    known = schema.get("properties")
    known = known if isinstance(known, dict) else {}
    patterns = schema.get("patternProperties")
    patterns = patterns if isinstance(patterns, dict) else {}
    for name in _listed(schema.get("required")):
        if name not in value:
            yield f"{at} lacks {name!r}"
    for name, part in value.items():
        place = f"{at}.{name}"
        matching = [option for pattern, option in patterns.items() if _found(pattern, name)]
        for option in matching:
            yield from _problems(part, option, root, place, depth)
        if name in known:
            yield from _problems(part, known[name], root, place, depth)
        elif not matching and schema.get("additionalProperties") is False:
            yield f"{at} must not have {name!r}"
        elif not matching:
            yield from _problems(part, schema.get("additionalProperties"), root, place, depth)


def _of_items(value: list[Any], schema: Mapping[str, Any], root: Any, at: str, depth: int) -> Iterator[str]:
    first = _listed(schema.get("prefixItems"))
    for number, part in enumerate(value):
        option = first[number] if number < len(first) else schema.get("items")
        yield from _problems(part, option, root, f"{at}[{number}]", depth)
    if schema.get("uniqueItems") is True and any(
        _same(part, other) for number, part in enumerate(value) for other in value[:number]
    ):
        yield f"{at} must not have the same item twice"


def _referred(reference: str, root: Any) -> Any:
    """The schema that a reference inside the document names; True, which everything fits, for any other."""
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return True
        found = found[name]
    return found if reference.startswith("#") else True


def _found(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:  # a pattern of JavaScript's that Python has not
        return True


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: Any) -> bool:
    return _TYPES["number"](value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
