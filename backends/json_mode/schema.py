"""Whether a JSON value fits a JSON Schema, and if not, where and why: by the library jsonschema-rs, in our words.

A schema is of draft 2020-12, or of the draft that its ``$schema`` names. Keywords that the draft does not have, and
``format``, are ignored, as the standard says, but OpenAI's and OpenAPI's ``nullable`` is not. Nothing is ever fetched:
references lead to places in the schema. Patterns are matched in linear time.

As a script, which ``checks`` starts as a child process, it answers checks on its standard input (see ``serve_checks``).
"""

from __future__ import annotations

import functools
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import jsonschema_rs
from pydantic_core import from_json

MOST_MEMORY = 2 << 30  # bytes of address space of the process that checks
_LONGEST = 1000  # characters of a sentence
_EXCERPT = 80  # characters of a value in it
_MESSAGE = 200  # last characters of the library's own message: they say why, and the first ones repeat the value

# The values of _DATA are not schemas, whatever they contain; those of _NAMED are schemas by names of the user's.
_DATA = frozenset({"const", "default", "enum", "examples"})
_NAMED = frozenset({"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"})
_PATTERNS = "write it without look-around such as (?=x), back-references such as \\1, and repetitions of many thousands"


def problem_of_value(value: Any, schema: str) -> str | None:
    """The first problem of a value, in a sentence that starts with its place; None if it fits the schema, as JSON.

    >>> problem_of_value({"age": "3"}, '{"properties": {"age": {"type": "integer"}}}')
    "$.age must be integer, not '3'"
    """
    try:
        _validator(schema).validate(value)
    except jsonschema_rs.ValidationError as error:
        return _sentence(error, value)[:_LONGEST]
    except ValueError as error:
        return f"$ cannot be checked: {str(error)[:_MESSAGE]}"
    return None


def problem_of_schema(text: str) -> str | None:
    """The first problem of a schema, as JSON, in such a sentence; None if values can be checked with it."""
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict | bool):
            return f"$ must be a JSON Schema, which is an object, not {_short(schema)}"
        _validator(text)
    except jsonschema_rs.ValidationError as error:
        return _sentence_of_schema(error, schema)[:_LONGEST]
    except RecursionError:
        return "$ is nested too deep"
    except ValueError as error:  # a number that is too long, a lone surrogate
        return f"$ cannot be read: {str(error)[:_MESSAGE]}"
    return None


def problem_of_answer(text: bytes, schema: str) -> str | None:
    """The problem of a text that must be JSON and fit a schema, as JSON; without one it must be an object."""
    try:
        value = from_json(text)
    except ValueError as error:
        return f"the answer is not valid JSON ({error})"
    if not schema:
        return None if isinstance(value, dict) else "the answer is JSON but not an object"
    problem = problem_of_value(value, schema)
    return f"the answer does not fit the JSON schema: {problem}" if problem else None


def serve_checks() -> None:
    """Answers checks until standard input ends; one that takes too much CPU time or memory ends the process instead.

    A check is a line with three numbers (the bytes of the schema, those of the answer or -1 to check the schema, and
    the CPU seconds that it may take), followed by these bytes. The reply is a line: the problem as JSON, or null.
    """
    with suppress(ValueError, OSError):  # for systems without these limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    read, write = sys.stdin.buffer, sys.stdout.buffer
    while head := read.readline().split():
        schema_bytes, answer_bytes = int(head[0]), int(head[1])
        schema = read.read(schema_bytes).decode()
        answer = read.read(answer_bytes) if answer_bytes >= 0 else None
        # Its signal has no handler, so it ends the process even in the middle of native code.
        signal.setitimer(signal.ITIMER_PROF, float(head[2]))
        problem = problem_of_schema(schema) if answer is None else problem_of_answer(answer, schema)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write.write(json.dumps(problem).encode() + b"\n")
        write.flush()


@functools.lru_cache(maxsize=64)  # most lines of a run have the same schema
def _validator(text: str) -> jsonschema_rs.Validator:
    """Raises jsonschema_rs.ValidationError, and ValueError for JSON that the library cannot read."""
    schema = json.loads(text)
    schema = True if schema is None else schema
    build = functools.partial(
        jsonschema_rs.validator_cls_for(schema),  # 2020-12 if the draft that it names is unknown
        validate_formats=False,
        retriever=_refuse,
        pattern_options=jsonschema_rs.RegexOptions(),
    )
    build(schema)  # as it was written, so that errors are about that
    return build(_with_null(schema))


def _refuse(uri: str) -> Any:
    raise LookupError(uri)


def _with_null(schema: Any) -> Any:
    """The schema with OpenAPI's ``nullable`` in JSON Schema's own words."""
    if isinstance(schema, list):
        return [_with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    written: dict[str, Any] = {}
    for name, part in schema.items():
        if name in _NAMED and isinstance(part, dict):
            written[name] = {key: _with_null(one) for key, one in part.items()}
        else:
            written[name] = part if name in _DATA else _with_null(part)
    if schema.get("nullable") is True and "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        written["type"] = [*kinds, *({"null"} - set(kinds))]
    return written


# Sentences.

_SAYS: Mapping[str, Callable[[Any, Any], str]] = {
    "type": lambda want, got: f"must be {_kinds(want)}, not {_short(got)}",
    "enum": lambda want, got: f"must be one of {_short(want)}, not {_short(got)}",
    "const": lambda want, got: f"must be {_short(want)}, not {_short(got)}",
    "required": lambda want, got: f"lacks {_short(want)}",  # noqa: ARG005
    "minimum": lambda want, got: f"must be at least {want}, not {_short(got)}",
    "maximum": lambda want, got: f"must be at most {want}, not {_short(got)}",
    "exclusiveMinimum": lambda want, got: f"must be above {want}, not {_short(got)}",
    "exclusiveMaximum": lambda want, got: f"must be below {want}, not {_short(got)}",
    "multipleOf": lambda want, got: f"must be a multiple of {want}, not {_short(got)}",
    "minLength": lambda want, got: f"must have at least {want} characters, not {len(got)}",
    "maxLength": lambda want, got: f"must have at most {want} characters, not {len(got)}",
    "minItems": lambda want, got: f"must have at least {want} items, not {len(got)}",
    "maxItems": lambda want, got: f"must have at most {want} items, not {len(got)}",
    "minProperties": lambda want, got: f"must have at least {want} fields, not {len(got)}",
    "maxProperties": lambda want, got: f"must have at most {want} fields, not {len(got)}",
    "uniqueItems": lambda want, got: "must not have the same item twice",  # noqa: ARG005
    "pattern": lambda want, got: f"must match {_short(want)}, as {_short(got)} does not",
    "not": lambda want, got: f"must not be {_short(got)}",  # noqa: ARG005
    "falseSchema": lambda want, got: "must not be there",  # noqa: ARG005
}


def _sentence(error: jsonschema_rs.ValidationError, whole: Any = None) -> str:
    """``whole``: the checked value, in which the error is located."""
    at, kind, value = _place(error.instance_path), error.kind, error.instance
    if kind.name in ("anyOf", "oneOf"):
        context: list[list[jsonschema_rs.ValidationError]] = kind.value
        found = next((errors[0] for errors in context if errors), None)
        if isinstance(kind, jsonschema_rs.ValidationErrorKind.OneOfMultipleValid) or found is None:
            return f"{at} must fit one of its alternatives, and fits several"
        first = _sentence(found, whole)
        return first if len(context) == 1 else f"{at} fits none of its {len(context)} alternatives ({first})"
    if kind.name == "falseSchema" and error.schema_path[-1:] == ["additionalProperties"]:
        return f"{at} must not have {_short(next(iter(_at(whole, error.instance_path))))}"  # not named by the library
    if kind.name in ("additionalProperties", "unevaluatedProperties"):
        return f"{at} must not have {_short(kind.value[0])}"
    says = _SAYS.get(kind.name)
    return f"{at} {says(kind.value, value)}" if says else f"{at} does not fit {kind.name}: {error.message[-_MESSAGE:]}"


def _sentence_of_schema(error: jsonschema_rs.ValidationError, schema: Any) -> str:
    """The same of a schema that breaks the rules of its draft."""
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Referencing):
        for at, reference in _references(schema, "$"):
            if reference.removeprefix("#") in error.message:
                return f"{at} leads nowhere: {_short(reference)} is not in the schema, and nothing is fetched"
        return f"$ has a reference that leads nowhere, and nothing is fetched: {error.message[-_MESSAGE:]}"
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Format):
        at, written = _place(error.instance_path), _short(error.instance)
        return f"{at} cannot be used as a regular expression: {written} ({_PATTERNS})"
    return _sentence(error, schema)


def _references(schema: Any, at: str) -> Iterator[tuple[str, str]]:
    """The places and targets of all references."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _references(part, f"{at}[{number}]")
    elif isinstance(schema, dict):
        for name, part in schema.items():
            if name in ("$ref", "$dynamicRef", "$recursiveRef") and isinstance(part, str):
                yield f"{at}.{name}", part
            elif name not in _DATA:
                yield from _references(part, f"{at}.{name}")


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def _place(path: Sequence[str | int]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _kinds(names: Sequence[str]) -> str:
    return " or ".join(sorted(names, key=lambda name: name == "null"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 3]}..."


if __name__ == "__main__":
    serve_checks()
