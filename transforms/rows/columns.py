"""Typed columns of answers that match a JSON schema. No Beam but its types of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union, get_args, get_origin

import apache_beam as beam
from apache_beam.typehints.row_type import RowTypeConstraint
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from llmdo.backends.errors import BadReply, short

_PLAIN = {"string": str, "integer": int, "number": float, "boolean": bool}
_WHOLE = 2**63  # Beam's coder of rows has 64 bits for a whole number
_DEEPEST = 16  # a schema that refers to itself ends here, as JSON text


@dataclass(frozen=True, slots=True)
class Column:
    """A property of the schema: its name there, the name of its column, and its type in Beam."""

    name: str
    column: str
    kind: Any


def nullable(kind: Any) -> Any:
    """The type of a column that may be null."""
    return Optional[kind]  # noqa: UP045  a row's type has no |


def given_object(name: str, given: Any) -> dict[str, Any]:
    """An argument that is a dict, or what other languages can send: a row or JSON text. Raises ValueError."""
    if isinstance(given, str):
        try:
            given = from_json(given)
        except ValueError as error:
            raise ValueError(f"{name} is not JSON ({error}): give a JSON object, or a dict") from None
    elif hasattr(given, "_asdict"):
        given = {key: _plain(value) for key, value in given._asdict().items()}
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} is {short(given)}: give a dict, a row or a JSON object as text")
    return dict(given)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def given_schema(given: Any) -> dict[str, Any]:
    """A JSON schema as it is, or as text; that of a pydantic model, dataclass, TypedDict or NamedTuple.

    Raises ValueError.
    """
    if isinstance(given, Mapping | str):
        return given_object("schema", given)
    try:
        return TypeAdapter(given).json_schema()
    except Exception as error:  # pydantic has an error for every kind of type
        raise ValueError(
            f"schema {given!r} is none: give a JSON schema as a dict, or a pydantic model or dataclass"
        ) from error


def property_columns(schema: Mapping[str, Any], taken: Sequence[str]) -> tuple[Column, ...]:
    """A column for each property. One whose name is ``taken`` gets the prefix ``answer_``, as in ``llmdo export``.

    What has no type of its own in Beam (any value, objects without properties) is JSON text. Every column may be null:
    a schema need not require all of its properties.
    """
    resolved = _resolved(schema, schema)
    properties = resolved.get("properties")
    found: list[Column] = []
    used = {*taken}
    for name, one in (properties if isinstance(properties, Mapping) else {}).items():
        column = name
        while column in used:
            column = f"answer_{column}"
        used.add(column)
        found.append(Column(name, column, nullable(_kind(one, schema, 0))))
    return tuple(found)


def answer_values(text: str | None, columns: Sequence[Column]) -> dict[str, Any]:
    """The columns of an answer. Raises BadReply for a value that its column cannot hold."""
    try:
        answer = from_json(text) if text else None
    except ValueError:
        answer = None
    try:
        return typed_values(answer if isinstance(answer, dict) else {}, columns)
    except ValueError as error:
        raise BadReply(f"the answer does not fit its columns: {error}") from None


def typed_values(values: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Values as their columns have them. Raises ValueError for one of another type."""
    return {one.column: _value(values.get(one.name), one.kind, one.name) for one in columns}


def _resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without the references and the null that it begins with."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping):
            return {}
        reference, choices = schema.get("$ref"), schema.get("anyOf") or schema.get("oneOf")
        if isinstance(reference, str) and reference.startswith("#/"):
            schema = _at(root, reference)
        elif isinstance(choices, list) and len(some := [one for one in choices if one != {"type": "null"}]) == 1:
            schema = some[0]
        else:
            return schema
    return {}


def _at(root: Any, reference: str) -> Any:
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        root = root.get(name) if isinstance(root, Mapping) else None
    return root


def _kind(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    """The type of a value that is there; str where it is written as JSON."""
    schema = _resolved(schema, root)
    kinds = schema.get("type")
    kinds = [one for one in (kinds if isinstance(kinds, list) else [kinds]) if one != "null"]
    if kinds == [None] and isinstance(schema.get("enum"), list):
        of_values = {str: "string", bool: "boolean", int: "integer", float: "number"}
        kinds = list({of_values.get(type(one)) for one in schema["enum"] if one is not None})
    kind = kinds[0] if len(kinds) == 1 else None
    if kind in _PLAIN:
        return _PLAIN[kind]
    properties = schema.get("properties")
    if depth < _DEEPEST and kind == "array" and isinstance(schema.get("items"), Mapping):
        return Sequence[nullable(_kind(schema["items"], root, depth + 1))]  # type: ignore[misc]  # made at run time
    if depth < _DEEPEST and kind == "object" and isinstance(properties, Mapping) and properties:
        return RowTypeConstraint.from_fields(
            [(name, nullable(_kind(one, root, depth + 1))) for name, one in properties.items()]
        )
    return str


def _value(value: Any, kind: Any, name: str) -> Any:
    if value is None:
        return None
    if get_origin(kind) is Union:
        kind = get_args(kind)[0]
    if kind is str:
        return value if isinstance(value, str) else to_json(value).decode()
    if isinstance(kind, RowTypeConstraint) and isinstance(value, Mapping):
        fields = kind._fields
        return beam.Row(**{key: _value(value.get(key), one, key) for key, one in fields})
    if get_origin(kind) is Sequence and isinstance(value, list):
        return [_value(one, get_args(kind)[0], name) for one in value]
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, bool) and type(value) is kind and -_WHOLE <= value < _WHOLE:
        return value
    raise ValueError(f"{name!r} is {short(value)}, and its column is of another type")
