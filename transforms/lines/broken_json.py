"""What is likely wrong with a line that is not JSON, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from pydantic_core import from_json

from llmdo.transforms.tables.look_ahead import BOM

# A longer line gets no hint: to look for one is to parse it again. Bytes.
_LONGEST = 64 << 10
# A string, which stays as it is, or a comma with nothing behind it.
_TRAILING_COMMA = re.compile(rb'("(?:[^"\\]|\\.)*+")|,(?=\s*+[}\]])', re.DOTALL)
_PYTHON = re.compile(rb"\{\s*'")
_NEXT_OBJECT = re.compile(rb"\}\s*\{")


def hint(data: bytes) -> str:
    """A clause that continues a sentence, or ""."""
    return "" if len(data) > _LONGEST else next(_hints(data), "")


def _hints(data: bytes) -> Iterator[str]:
    text = data.strip()
    if data.startswith(BOM):
        yield "; it begins with a byte order mark, as where files were joined: remove it"
    if _parses(data, nan=True):
        yield "; NaN and Infinity are not JSON: write null, or a string"
    if text.endswith(b",") and _parses(text[:-1]):
        yield "; there is a comma behind the object: remove it"
    if _parses(_TRAILING_COMMA.sub(rb"\1", text)):
        yield "; there is a comma before a closing bracket: remove it"
    if _PYTHON.match(text):
        yield "; it looks like a Python dict: write lines with json.dumps"
    if text.startswith(("{“".encode(), "{”".encode(), "{„".encode())):
        yield '; it has typographic quotes: JSON takes only "'
    if text.startswith(b'"{""'):
        yield "; it is quoted as a cell of a table: save the file as plain text, not as CSV"
    if text in {b"{", b"["}:
        yield "; an object may not go over several lines: write one a line, as jq -c does"
    if any(_parses(text[: at.start() + 1]) for at in islice(_NEXT_OBJECT.finditer(text), 3)):
        yield "; there are several objects in the line: write one a line"
    try:
        prose = data.decode()[:1].isalpha()
    except UnicodeDecodeError:
        prose = False
        yield "; it is not UTF-8: convert the file, as by iconv -f WINDOWS-1252 -t UTF-8"
    if prose and b'"' not in data and b"{" not in data:
        yield '; it is plain text: write {"prompt": "…"} with it'


def _parses(data: bytes, *, nan: bool = False) -> bool:
    with suppress(ValueError):
        from_json(data, allow_inf_nan=nan)
        return True
    return False


def kind_of(value: object) -> str:
    """A value's JSON type for messages: ``an object``, ``a number``."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
