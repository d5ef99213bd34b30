"""Whether a JSON value fits a JSON Schema, and if not, where and why: the library jsonschema, with sentences of ours.

A schema is of draft 2020-12, or of the draft that its ``$schema`` names. What the draft does not know is no check, as
the standard has it, but for OpenAPI's ``nullable``. Nothing is ever fetched: references lead to places in the schema.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

# What a schema may cost, which a line may bring: it is checked on the thread of all calls.
LONGEST_PATTERN = 1000  # characters
MOST_REFERENCES = 10_000  # that are followed for one value
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# The values of these are no schemas, whatever stands in them.
_DATA = frozenset({"const", "default", "enum", "examples"})

_MESSAGE = 200  # characters of the library's own sentence: its end says why, its begin repeats the value

_followed: ContextVar[Iterator[int]] = ContextVar("_followed")


class _TooFar(Exception):
    """References were followed without end."""


def problem_of(value: Any, schema: Any) -> str | None:
    """The first thing that is wrong with a value, in a sentence that starts with its place; None where it fits.

    >>> problem_of({"age": "3"}, {"properties": {"age": {"type": "integer"}}})
    "$.age must be integer, not '3'"
    """
    _followed.set(iter(range(MOST_REFERENCES)))
    try:
        error = next(_validator(json.dumps(schema)).iter_errors(value), None)
    except (RecursionError, _TooFar):
        return "$ cannot be checked: the schema refers to itself without end"
    return error and _sentence(error)


@functools.lru_cache(maxsize=64)  # of a run's lines most have the same one
def problem_of_schema(text: str) -> str | None:
    """The first thing that is wrong with a schema, as JSON, likewise; None where values can be checked with it."""
    schema = json.loads(text)
    if not isinstance(schema, dict | bool):
        return f"$ must be a JSON Schema, which is an object, not {_short(schema)}"
    exceptions = _library().exceptions
    try:
        type(_validator(text)).check_schema(schema)
        return next(_unusable(schema, _resolver(text), "$"), None)
    except exceptions.SchemaError as error:
        return _sentence(error)
    except (RecursionError, OverflowError):
        return "$ is nested too deep, or repeats a pattern too often"


def _unusable(schema: Any, resolver: Any, at: str) -> Iterator[str]:
    """References that lead nowhere, and patterns that may take too long."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _unusable(part, resolver, f"{at}[{number}]")
    if not isinstance(schema, dict):
        return
    for name in _REFERENCES:
        if isinstance(schema.get(name), str) and not _leads_somewhere(schema[name], resolver):
            yield f"{at}.{name} leads nowhere: {_short(schema[name])} is not in the schema, and nothing is fetched"
    known = schema.get("patternProperties")
    for pattern in (schema.get("pattern"), *(known if isinstance(known, dict) else ())):
        if isinstance(pattern, str) and len(pattern) > LONGEST_PATTERN:
            yield f"{at} has a pattern of over {LONGEST_PATTERN:,} characters: {_short(pattern)}"
    for name, part in schema.items():
        if name not in _DATA:
            yield from _unusable(part, resolver, f"{at}.{name}")


def _leads_somewhere(reference: str, resolver: Any) -> bool:
    try:
        resolver.lookup(reference)
    except Exception:  # noqa: BLE001 - the library's own, and what its parts raise over no URL
        return False
    return True


# The library.


@functools.cache
def _library() -> ModuleType:
    import jsonschema  # noqa: PLC0415 - 70 ms, and most commands check no schema

    return jsonschema


@functools.cache
def _draft(name: str) -> Any:
    """The library's class for a draft, with what models are asked in practice and the library does not know."""
    validators = _library().validators
    draft = validators.validator_for({"$schema": name}, default=validators.Draft202012Validator)
    counted = {name: _counted(draft.VALIDATORS[name]) for name in _REFERENCES if name in draft.VALIDATORS}
    original = draft.VALIDATORS["type"]

    def nullable(validator: Any, types: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        if value is not None or schema.get("nullable") is not True:  # OpenAPI's
            yield from original(validator, types, value, schema)

    return validators.extend(draft, {"type": nullable, "multipleOf": _multiple, **counted})


def _counted(follow: Callable[..., Iterator[ValidationError]]) -> Callable[..., Iterator[ValidationError]]:
    def counted(validator: Any, reference: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        if next(_followed.get(), None) is None:
            raise _TooFar
        yield from follow(validator, reference, value, schema)

    return counted


def _multiple(_: Any, step: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    """As people count: 0.3 is a multiple of 0.1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
        yield _library().exceptions.ValidationError("")


@functools.lru_cache(maxsize=64)
def _validator(text: str) -> Any:
    from referencing import Registry  # noqa: PLC0415 - as above

    schema = json.loads(text)
    schema = True if schema is None else schema
    name = schema.get("$schema") if isinstance(schema, dict) else None
    return _draft(name if isinstance(name, str) else "")(schema, registry=Registry())


def _resolver(text: str) -> Any:
    from referencing import Registry  # noqa: PLC0415 - as above
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415 - as above

    schema = json.loads(text)
    own = schema.get("$id") if isinstance(schema, dict) else None
    resource = DRAFT202012.create_resource(schema)
    base = own if isinstance(own, str) else ""
    return Registry().with_resource(base, resource).crawl().resolver(base)


# Sentences.

_SAYS: Mapping[str, Callable[[Any, Any], str]] = {
    "type": lambda want, got: f"must be {' or '.join([want] if isinstance(want, str) else want)}, not {_short(got)}",
    "enum": lambda want, got: f"must be one of {_short(want)}, not {_short(got)}",
    "const": lambda want, got: f"must be {_short(want)}, not {_short(got)}",
    "required": lambda want, got: f"lacks {next(name for name in want if name not in got)!r}",
    "minimum": lambda want, got: f"must be at least {want}, not {got}",
    "maximum": lambda want, got: f"must be at most {want}, not {got}",
    "exclusiveMinimum": lambda want, got: f"must be above {want}, not {got}",
    "exclusiveMaximum": lambda want, got: f"must be below {want}, not {got}",
    "multipleOf": lambda want, got: f"must be a multiple of {want}, not {got}",
    "minLength": lambda want, got: f"must have at least {want} characters, not {len(got)}",
    "maxLength": lambda want, got: f"must have at most {want} characters, not {len(got)}",
    "minItems": lambda want, got: f"must have at least {want} items, not {len(got)}",
    "maxItems": lambda want, got: f"must have at most {want} items, not {len(got)}",
    "minProperties": lambda want, got: f"must have at least {want} fields, not {len(got)}",
    "maxProperties": lambda want, got: f"must have at most {want} fields, not {len(got)}",
    "uniqueItems": lambda want, got: "must not have the same item twice",  # noqa: ARG005
    "pattern": lambda want, got: f"must match {want!r}, as {_short(got)} does not",
    "format": lambda want, got: f"is no {want}: {_short(got)}",
    "not": lambda want, got: f"must not be {_short(got)}",  # noqa: ARG005
}


def _sentence(error: ValidationError) -> str:
    at = "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    keyword, wanted, value = str(error.validator), error.validator_value, error.instance
    if error.validator is None:
        return f"{at} must not have {_short(value)}"  # the schema there is false; the library does not say more
    if keyword in ("anyOf", "oneOf"):
        if not error.context:
            return f"{at} must fit one of its alternatives, and fits several"
        first = _sentence(error.context[0])
        return first if len(wanted) == 1 else f"{at} fits none of its {len(wanted)} alternatives ({first})"
    if keyword == "additionalProperties" and isinstance(error.schema, Mapping):
        return f"{at} must not have {next(_others(value, error.schema))!r}"
    says = _SAYS.get(keyword)
    return f"{at} {says(wanted, value)}" if says else f"{at} does not fit {keyword}: {error.message[-_MESSAGE:]}"


def _others(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    patterns = schema.get("patternProperties", {})
    for name in value:
        if name not in schema.get("properties", {}) and not any(re.search(pattern, name) for pattern in patterns):
            yield name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
