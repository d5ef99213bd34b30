"""Parses a line as a JSON object, and recovers the line from an error row of an earlier run."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.backends.errors import InvalidRequest
from llmdo.transforms.lines.broken_json import hint, kind_of

# The ``error`` of every error row has all of these, which a user's own field ``error`` hardly does.
_ERROR_FIELDS = frozenset("class code status message retryable attempts offset length".split())


class BadLine(InvalidRequest):
    """The line is not a request."""


def json_object(data: bytes) -> dict[str, Any]:
    """Parses a line as a JSON object. Raises BadLine."""
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
    """The line itself, or for an error row, which may be fed back unchanged, the line that it is about.

    Raises BadLine for a damaged error row.
    """
    while b'"retryable"' in data:  # cheap test: every error row contains it
        try:
            row = json_object(data)
        except BadLine:
            return data
        if not _is_error_row(row):
            return data
        kept = _line_of(row)
        if not isinstance(kept, bytes):
            return to_json(kept)
        data = kept
    return data


def _is_error_row(document: Mapping[str, Any]) -> bool:
    """Whether an object is an error row, rather than a user's line with a field ``error``."""
    error = document.get("error")
    return isinstance(error, dict) and error.keys() >= _ERROR_FIELDS


def _line_of(row: Mapping[str, Any]) -> bytes | Mapping[str, Any]:
    """The line that an error row is about: its text, or its fields if it was kept as an object.

    Raises BadLine for damaged base64.
    """
    if isinstance(line := row["error"].get("line"), str):
        return line.encode("utf-8", "surrogatepass")
    fields = {name: value for name, value in row.items() if name != "error"}
    match fields:  # a line that was not a JSON object has no other field
        case {"raw": str(raw)} if len(fields) == 1:
            return raw.encode("utf-8", "surrogatepass")
        case {"raw_base64": str(raw)} if len(fields) == 1:
            try:
                return base64.b64decode(raw, validate=True)
            except ValueError as error:
                raise BadLine("'raw_base64' is not base64: use the error file as it was written") from error
    return fields


def _overflows(value: object) -> bool:
    """Whether a number such as 1e400 became infinity, which cannot be written as JSON."""
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
