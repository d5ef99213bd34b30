"""A line as a JSON object, and the line that an error row of an earlier run stands for."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.backends.errors import InvalidRequest
from llmdo.transforms.lines.broken_json import hint

# Every error row has all of these in its ``error``; an ``error`` of the user's own has hardly all of them.
_ERROR_FIELDS = frozenset("class code status message retryable attempts offset length".split())


class BadLine(InvalidRequest):
    """The line is not a request."""


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a line holds. Raises BadLine."""
    try:
        document = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise BadLine(f"not valid JSON: {error}{hint(data)}") from None
    if not isinstance(document, dict):
        raise BadLine(f"a line must be a JSON object, not {kind_of(document)}")
    if _overflows(document):
        raise BadLine("a number in the line is too large: write it as a string")
    return document


def unwrapped(data: bytes) -> bytes:
    """The line itself; of an error row, which may be fed back as it is, the line that it stands for.

    Raises BadLine for an error row that was damaged.
    """
    while b'"retryable"' in data:  # else it is not an error row, and need not be parsed for that
        try:
            row = json_object(data)
        except BadLine:
            return data
        if not is_error_row(row):
            return data
        kept = line_of(row)
        if not isinstance(kept, bytes):
            return to_json(kept)
        data = kept
    return data


def is_error_row(document: Mapping[str, Any]) -> bool:
    """Whether an object is an error row, and its ``error`` not a field of the user's."""
    error = document.get("error")
    return isinstance(error, dict) and error.keys() >= _ERROR_FIELDS


def line_of(row: Mapping[str, Any]) -> bytes | Mapping[str, Any]:
    """The line that an error row stands for: its text, or its fields where it was kept as these.

    Raises BadLine for base64 that was damaged.
    """
    if isinstance(line := row["error"].get("line"), str):
        return line.encode("utf-8", "surrogatepass")
    fields = {name: value for name, value in row.items() if name != "error"}
    match fields:  # what is kept of a line that was no JSON object stands alone
        case {"raw": str(raw)} if len(fields) == 1:
            return raw.encode("utf-8", "surrogatepass")
        case {"raw_base64": str(raw)} if len(fields) == 1:
            try:
                return base64.b64decode(raw, validate=True)
            except ValueError as error:
                raise BadLine("'raw_base64' is not base64: use the error file as it was written") from error
    return fields


def kind_of(value: object) -> str:
    """For people: ``an object``, ``a number``."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _overflows(value: object) -> bool:
    """Whether a number such as 1e400 has become infinity, which no JSON can hold again."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
        elif isinstance(part, float) and math.isinf(part):
            return True
    return False
