"""JSON that is read without changing a value: whole numbers of any size, and texts that are not Unicode mended."""

from __future__ import annotations

import json
from typing import Any

import orjson

# From here on a float may be a whole number that orjson could not hold.
_LARGE = 2.0**63


def read_value(data: bytes | str) -> Any:
    """Any JSON. Raises ValueError."""
    try:
        value = orjson.loads(data)
    except ValueError:  # also for half a surrogate pair
        return _slowly(data)
    return _slowly(data) if has_large(value) else value


def has_large(value: object) -> bool:
    """Whether a number, at any depth, may have lost digits to a float."""
    kind = type(value)
    if kind is float:
        return not -_LARGE < value < _LARGE  # type: ignore[operator]  # a float
    if kind is not dict and kind is not list:
        return False
    for one in value.values() if kind is dict else value:  # type: ignore[attr-defined, union-attr]  # one of them
        kind = type(one)
        if kind is not str and kind is not int and one is not None and has_large(one):
            return True
    return False


def json_text(value: object) -> str:
    """A value as JSON on one line."""
    return json_bytes(value).decode()


def json_bytes(value: object) -> bytes:
    """A value as JSON on one line, in UTF-8."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number of more than 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _slowly(data: bytes | str) -> Any:
    try:
        return _mended(json.loads(data))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _mended(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair, in texts and names."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, list):
        return [_mended(one) for one in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(one) for name, one in value.items()}
    return value
