"""The JSON form of a table's values, by their Arrow types. docs/guide/inputs.md has it as a table."""

from __future__ import annotations

import base64
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.types as is_type

from llmdo.transforms.tables.csv_rows import JSON_COLUMNS
from llmdo.transforms.unreadable import CorruptData


def check_columns(schema: pa.Schema) -> None:
    """Raises CorruptData if two columns, or two fields of a struct, have one name, or a type has no JSON form."""
    _check_names("", [field.name for field in schema])
    for field in schema:
        _check_type(field.name, field.type)


def json_rows(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Each row as a JSON object, with its columns in their order.

    In a column of JSON_COLUMNS, text is JSON if it can be, and structs have only the fields with a value: those of one
    message are not those of the next.
    """
    names = batch.schema.names
    if not names:
        yield from [b"{}"] * batch.num_rows
        return
    columns = [
        list(map(_request_part, values)) if name in JSON_COLUMNS else values
        for name, values in zip(names, map(json_values, batch.columns), strict=True)
    ]
    for row in zip(*columns, strict=True):
        yield _json_object(dict(zip(names, row, strict=True)))


def json_values(array: pa.Array) -> list[Any]:
    """The values of a column in their JSON form; numbers that JSON cannot represent are still NaN or infinite."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        values = json_values(array.storage) if kind.extension_name != "arrow.uuid" else _uuids(array.storage)
    elif is_type.is_dictionary(kind):
        meant = json_values(array.dictionary)
        values = [None if index is None else meant[index] for index in array.indices.to_pylist()]
    else:
        values = next(form for applies, form in _FORMS if applies(kind))(array)
    return values


def _request_part(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with suppress(ValueError):  # it stays text, which the line's own error is about
            return orjson.loads(value)
        return value
    if isinstance(value, list):
        return list(map(_request_part_within, value))
    return _request_part_within(value)


def _request_part_within(value: Any) -> Any:
    """Without the fields of structs that have no value."""
    if isinstance(value, dict):
        return {name: _request_part_within(part) for name, part in value.items() if part is not None}
    return list(map(_request_part_within, value)) if isinstance(value, list) else value


def _check_names(of: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise CorruptData(f"has {of}several columns named {twice[0]!r}", "give each a name of its own")


def _check_type(name: str, kind: pa.DataType) -> None:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if is_type.is_dictionary(kind):
        kind = kind.value_type
    if not any(applies(kind) for applies, _ in _FORMS):
        raise CorruptData(f"has a column {name!r} of type {kind}, which has no JSON form", "write it as another type")
    if is_type.is_struct(kind):
        _check_names(f"in {name!r} ", [kind.field(i).name for i in range(kind.num_fields)])
    for i in range(kind.num_fields):
        _check_type(f"{name}.{kind.field(i).name}", kind.field(i).type)


def _json_object(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row)
    except TypeError:  # text that is not UTF-8 goes on as it is, and its line is not JSON, as in a JSONL file
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _plain(array: pa.Array) -> list[Any]:
    return array.to_pylist()


def _texts(array: pa.Array) -> list[Any]:
    try:
        return _plain(array)
    except UnicodeDecodeError:
        packed = array.cast(pa.large_binary()).to_pylist()
        return [None if one is None else one.decode("utf-8", "surrogateescape") for one in packed]


def _each(form: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [None if value is None else form(value) for value in values]


def _floats(array: pa.Array) -> list[Any]:
    """The fewest digits by which each is read as the same float of its size: 0.1, not 0.10000000149011612."""
    if is_type.is_float16(array.type):
        return _each(lambda value: float(str(np.float16(value))), _plain(array))
    if is_type.is_float32(array.type):
        return _each(float, _plain(array.cast(pa.string())))
    return _plain(array)


def _decimals(array: pa.Array) -> list[Any]:
    return _each(_digits, _plain(array))


def _digits(value: Decimal) -> str:
    return format(value, "f")


def _packed(array: pa.Array) -> list[Any]:
    return _each(lambda value: base64.b64encode(value).decode(), _plain(array))


def _uuids(array: pa.Array) -> list[Any]:
    return _each(lambda value: str(uuid.UUID(bytes=value)), _plain(array))


def _dates(array: pa.Array) -> list[Any]:
    return _plain(array.cast(pa.string()))


def _times(array: pa.Array) -> list[Any]:
    return _each(_without_zeros, _plain(array.cast(pa.string())))


def _timestamps(array: pa.Array) -> list[Any]:
    """ISO 8601; one with a zone is an instant, and written in UTC."""
    zone = "Z" if array.type.tz else ""
    texts = _plain(array.view(pa.timestamp(array.type.unit)).cast(pa.string()))
    return _each(lambda text: _without_zeros(text.replace(" ", "T")) + zone, texts)


def _without_zeros(text: str) -> str:
    """
    >>> _without_zeros('12:00:00.500000'), _without_zeros('12:00:00.000'), _without_zeros('12:00:00')
    ('12:00:00.5', '12:00:00', '12:00:00')
    """
    return text.rstrip("0").rstrip(".") if "." in text else text


def _durations(array: pa.Array) -> list[Any]:
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[array.type.unit]
    return _each(lambda value: _duration(value, digits), _plain(array.view(pa.int64())))


def _duration(value: int, digits: int) -> str:
    """ISO 8601, in seconds.

    >>> _duration(5400_000, 3), _duration(-1500, 3), _duration(0, 0)
    ('PT5400S', '-PT1.5S', 'PT0S')
    """
    seconds = _without_zeros(format(Decimal(abs(value)).scaleb(-digits), "f"))
    return f"{'-' if value < 0 else ''}PT{seconds}S"


def _lists(array: pa.Array) -> list[Any]:
    first, *_ = bounds = array.offsets.to_pylist()
    flat = json_values(array.values.slice(first, bounds[-1] - first))
    spans = zip(bounds, bounds[1:], array.is_valid().to_pylist(), strict=False)
    return [flat[start - first : stop - first] if there else None for start, stop, there in spans]


def _list_views(array: pa.Array) -> list[Any]:
    return [json_values(one.values) if one.is_valid else None for one in array]


def _fixed_lists(array: pa.Array) -> list[Any]:
    width = array.type.list_size
    flat = json_values(array.values.slice(array.offset * width, len(array) * width))
    valid = enumerate(array.is_valid().to_pylist())
    return [flat[i * width : (i + 1) * width] if there else None for i, there in valid]


def _structs(array: pa.Array) -> list[Any]:
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    there = array.is_valid().to_pylist()
    if not names:
        return [{} if valid else None for valid in there]
    rows = zip(*(json_values(array.field(i)) for i in range(len(names))), strict=True)
    return [dict(zip(names, row, strict=True)) if valid else None for row, valid in zip(rows, there, strict=True)]


def _maps(array: pa.Array) -> list[Any]:
    """Objects; a key that is not text is the text of its JSON form."""
    first, *_ = bounds = array.offsets.to_pylist()
    size = bounds[-1] - first
    keys = json_values(array.keys.slice(first, size))
    names = [key if isinstance(key, str) else orjson.dumps(key).decode() for key in keys]
    pairs = list(zip(names, json_values(array.items.slice(first, size)), strict=True))
    spans = zip(bounds, bounds[1:], array.is_valid().to_pylist(), strict=False)
    return [dict(pairs[start - first : stop - first]) if there else None for start, stop, there in spans]


# Whether a type is meant, and the form of its values; the first that applies counts.
_FORMS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (lambda kind: is_type.is_string(kind) or is_type.is_large_string(kind) or is_type.is_string_view(kind), _texts),
    (lambda kind: is_type.is_integer(kind) or is_type.is_boolean(kind) or is_type.is_null(kind), _plain),
    (is_type.is_floating, _floats),
    (is_type.is_struct, _structs),
    (is_type.is_map, _maps),
    (lambda kind: is_type.is_list(kind) or is_type.is_large_list(kind), _lists),
    (lambda kind: is_type.is_list_view(kind) or is_type.is_large_list_view(kind), _list_views),
    (is_type.is_fixed_size_list, _fixed_lists),
    (is_type.is_timestamp, _timestamps),
    (is_type.is_date, _dates),
    (is_type.is_time, _times),
    (is_type.is_duration, _durations),
    (is_type.is_decimal, _decimals),
    (
        lambda kind: (
            is_type.is_binary(kind)
            or is_type.is_large_binary(kind)
            or is_type.is_fixed_size_binary(kind)
            or is_type.is_binary_view(kind)
        ),
        _packed,
    ),
)
