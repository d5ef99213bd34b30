"""The JSON of replies, also where its writer did not keep to the standard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pydantic_core

from llmdo.backends.errors import BadReply

_LARGE = 1 << 20  # bytes; below it, what parsing costs is not looked at
# What parsing costs for each such byte, where it is part of the JSON and not of a text; measured, with some to spare.
_WORK_S = {b",": 1e-7, b"[": 4e-7, b"{": 4e-7, b":": 8e-7}
_LONGEST_S = 0.2
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_DIGITS = 4300  # of a whole number: Python reads no longer ones

REPLACED = "the reply held text that is not Unicode: it was replaced by U+FFFD"


def read_json(content: bytes, warn: Callable[[str], None] = lambda _: None) -> Any:
    """The JSON of a reply, or of an event of a stream.

    Half a surrogate pair, bytes that are not UTF-8 and control characters in texts are read, as are NaN and infinity.
    ``warn`` gets a sentence where text was replaced. Raises ValueError for what is not JSON, such as the first part of
    a reply, and BadReply for what would stop the loop for more than some 0.2 s: parsing holds Python's lock to its end.
    """
    content = without_preamble(content)
    if len(content) > _LARGE:
        check_work(content)
    try:
        return pydantic_core.from_json(content)
    except ValueError:
        return _mended(content, warn)


def check_work(content: bytes) -> None:
    """Raises BadReply for JSON whose parsing would stop the loop for more than some 0.2 s."""
    numpy = import_module("numpy")  # counts 10 times as fast as bytes do; not imported before a reply is that large
    parts = numpy.frombuffer(content, "u1")
    work_s = sum(seconds * int(numpy.count_nonzero(parts == ord(part))) for part, seconds in _WORK_S.items())
    if work_s > _LONGEST_S:
        raise BadReply(f"the reply's {len(content):,} bytes of JSON have too many parts to be read: ask for less")


def without_preamble(content: bytes) -> bytes:
    """A body without what stands before it: a byte order mark, and the spaces or comments (``: …``) by which services
    keep a connection open.
    """
    rest = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    while rest.startswith(b":"):
        rest = rest.partition(b"\n")[2].lstrip()
    return rest


def _int(digits: str) -> float:
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)


def _mended(content: bytes, warn: Callable[[str], None]) -> Any:
    text = content.decode(json.detect_encoding(content), "replace")
    try:
        value = json.loads(text, strict=False, parse_int=_int)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    replaced = "�" in text

    def clean(one: Any) -> Any:
        nonlocal replaced
        if isinstance(one, str):
            if _SURROGATE.search(one):
                replaced = True
                return _SURROGATE.sub("�", one)
            return one
        if isinstance(one, list):
            return [clean(part) for part in one]
        return {clean(name): clean(part) for name, part in one.items()} if isinstance(one, dict) else one

    value = clean(value)
    if replaced:
        warn(REPLACED)
    return value


_EXCERPT = 200  # characters of a reply that go into an error's sentence


def whole_number(value: Any) -> int | None:
    """A number, also one written as a text, as an int; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)
    return int(value) if isinstance(value, int | float) and abs(value) < 1e15 else None


def excerpt(value: Any) -> str:
    """The beginning of a reply, for an error's sentence."""
    return pydantic_core.to_json(value, fallback=list).decode()[:_EXCERPT]


def amount(value: Any) -> float | None:
    """A number that something can cost; None for what cannot be: negative, infinite, not a number."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e15 else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object; else an empty one."""
    return value if isinstance(value, dict) else {}
