"""Arrow types of columns: as a JSON Schema says, as values show, and the one that holds what came before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from llmdo.runners.inspecting.export.schemas import DEEPEST, referred

# An object with more fields than this is a dictionary, not a structure.
_MOST_FIELDS = 200
_SCALARS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_NUMBERS = {pa.int64(), pa.float64()}
# Whole numbers up to here are the same as floats.
EXACT = 2**53


def type_of_schema(schema: Any, root: Mapping[str, Any] | None = None, depth: int = 0) -> pa.DataType:
    """The type of values that match a JSON Schema; null where it leaves that open."""
    root = schema if root is None and isinstance(schema, Mapping) else root or {}
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return pa.null()
    options, kind = schema.get("anyOf") or schema.get("oneOf"), schema.get("type")
    if isinstance(schema.get("$ref"), str):
        found = type_of_schema(referred(schema["$ref"], root), root, depth + 1)
    elif isinstance(options, list):
        found = _one_of([type_of_schema(option, root, depth + 1) for option in options])
    elif isinstance(kind, list):
        found = _one_of([type_of_schema({**schema, "type": one}, root, depth + 1) for one in kind])
    elif kind is None and isinstance(values := schema.get("enum", [schema.get("const")]), list):
        found = pa.string() if all(isinstance(value, str) for value in values) else pa.null()
    elif kind == "array":
        found = pa.list_(type_of_schema(schema.get("items"), root, depth + 1))
    elif kind == "object" and isinstance(properties := schema.get("properties"), Mapping) and properties:
        found = pa.struct([(name, type_of_schema(one, root, depth + 1)) for name, one in properties.items()])
    else:
        found = _SCALARS.get(str(kind), pa.null())
    return found


def widened(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both; None if only JSON does."""
    found = None
    if one == other or pa.types.is_null(other):
        found = one
    elif pa.types.is_null(one):
        found = other
    elif {one, other} == _NUMBERS:
        found = pa.float64()
    elif pa.types.is_list(one) and pa.types.is_list(other):
        value = widened(one.value_type, other.value_type)
        found = None if value is None else pa.list_(value)
    elif pa.types.is_struct(one) and pa.types.is_struct(other):
        found = _joined(one, other)
    return found


def _joined(one: pa.StructType, other: pa.StructType) -> pa.DataType | None:
    """A structure with the fields of both."""
    fields: dict[str, pa.DataType | None] = {field.name: field.type for field in one}
    for field in other:
        before = fields.get(field.name)
        fields[field.name] = field.type if before is None else widened(before, field.type)
    if len(fields) > _MOST_FIELDS or None in fields.values():
        return None
    return pa.struct(list(fields.items()))


def written_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in a file: text where all values were null; None for objects with too many fields, or with none, which
    Parquet cannot hold.
    """
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        value = written_type(kind.value_type)
        return None if value is None else pa.list_(value)
    if pa.types.is_struct(kind):
        fields = [(field.name, written_type(field.type)) for field in kind]
        fits = 0 < len(fields) <= _MOST_FIELDS and all(one is not None for _, one in fields)
        return pa.struct(fields) if fits else None
    return kind


def inferred(values: Sequence[Any], *, whole: bool = False) -> pa.Array | None:
    """An array of JSON values; None if they are of different kinds, or whole numbers beyond 64 bits.

    ``whole``: floats such as 3.0 are whole numbers, if all are, as a JSON Schema has it.
    """
    kinds = set(map(type, values))
    kinds.discard(type(None))
    if kinds == {str}:
        return pa.array(values, pa.string())
    if not kinds:
        return pa.nulls(len(values))
    if len(kinds) > 1 and kinds != {int, float}:
        return None
    if whole and float in kinds and all(_is_whole(value) for value in values):
        values = [None if value is None else int(value) for value in values]
    try:
        return pa.array(values)
    # Not an error: these values have no type in common, which None tells the caller.
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None


def _is_whole(value: Any) -> bool:
    return value is None or (-EXACT <= value <= EXACT and value == int(value))


def _one_of(kinds: Sequence[pa.DataType]) -> pa.DataType:
    found: pa.DataType | None = pa.null()
    for kind in kinds:
        found = None if found is None else widened(found, kind)
    return pa.null() if found is None else found
