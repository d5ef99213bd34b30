"""Recognises a file that is not of the format that its name says, by its content's first bytes.

Only what is certain counts: a good file with one odd line is left to its lines.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.elements import Blank, FileVersion
from llmdo.transforms.kinds.magic import PARQUET, PARQUET_ENCRYPTED, TO_JSONL, is_binary, no_text
from llmdo.transforms.tables.csv_header import read_header
from llmdo.transforms.tables.json_elements import cut_elements
from llmdo.transforms.tables.look_ahead import BOM
from llmdo.transforms.unreadable import CorruptData

# What an element of a page or a document in XML begins with; in a table, only what begins a whole one.
_TAG = re.compile(rb"<(?:[!?]|/?[A-Za-z][\w:.-]*+[\s/>])")
_PAGE = re.compile(rb"<(?:!doctype|!--|\?xml|html|head|body|error|rss|svg)\b", re.IGNORECASE)
# The first name in an object, where its value is an array of objects: these are what documents call their rows.
_ROWS_WITHIN = re.compile(
    rb'\{\s*+"(data|rows|items|records|results|requests|entries|examples|samples|prompts|questions|train|test|value)"'
    rb"\s*+:\s*+\[\s*+\{"
)
# A line has one of these, and may have an array beside it.
_ASKING = frozenset(("prompt", "messages", "text", "input", "body", "params", "request"))
_RENAME = "rename it to .{0}, or give the format {0}"
_AS_ARRAY = "rename it to .json, give the format json, or write one element a line: jq -c '.[]'"
# So many lines are looked at.
_CHECKED = 3
_NO_FILE = FileVersion("", "", "", 0)


@dataclass(frozen=True, slots=True)
class _Head:
    """A file's first bytes, unpacked and without a BOM; ``whole``: they are all of it.

    Attributes:
        text: without blanks in front.
        lines: those that are not blank, without their endings; ``ended`` without the last one, where that may go on.
    """

    content: bytes
    whole: bool
    text: bytes
    lines: list[bytes]
    ended: list[bytes]


def _head(content: bytes, *, whole: bool) -> _Head:
    text = content.lstrip(b" \t\r\n")
    lines = _lines(text)
    return _Head(content, whole, text, lines, lines if whole else lines[:-1])


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]


def wrong_kind(form: FormatName, content: bytes, *, whole: bool) -> CorruptData | None:
    """The error about a file that begins with ``content``, unpacked, and is not of format ``form``; None if it may be.

    ``whole``: that is all of it.
    """
    if form == "parquet":
        none = CorruptData("is not a Parquet file", "rename it to what it is, or give its format")
        return None if content.startswith((PARQUET, PARQUET_ENCRYPTED)) else no_text(content) or none
    head = _head(content.removeprefix(BOM), whole=whole)
    if error := no_text(head.content):
        return error
    return next((error for look in _LOOKS[form] if (error := look(head))), None)


def json_or_lines(content: bytes) -> FormatName:
    """What a ``.json`` file is that begins like this: one array, or one object over several lines; or JSONL."""
    head = _head(content.removeprefix(BOM), whole=False)
    if head.text.startswith(b"["):
        return "jsonl" if _is_list_a_line(head.lines) and len(head.lines) > 1 else "json"
    if not head.text.startswith(b"{"):
        return "jsonl"
    whole = _object_over_lines(head.lines) or (len(head.lines) == 1 and _rows_within(head.text))
    return "json" if whole else "jsonl"


# The looks: each an error, or None.


def _at_no_lines(head: _Head) -> CorruptData | None:
    """JSONL with a broken line among others is JSONL; only an array may have objects in its lines, too."""
    if any(isinstance(_parsed(line), dict) for line in head.lines) and not head.text.startswith(b"["):
        return None
    return next((error for look in _INSTEAD_OF_LINES if (error := look(head))), None)


def _at_nuls(head: _Head) -> CorruptData | None:
    objects = any(line.lstrip(b" \t\r").startswith(b"{") for line in head.lines)
    return CorruptData("is binary data", TO_JSONL) if 0 in head.content and not objects else None


def _at_binary(head: _Head) -> CorruptData | None:
    return CorruptData("is binary data", TO_JSONL) if is_binary(head.content) else None


def _at_tags(head: _Head) -> CorruptData | None:
    return _markup() if _TAG.match(head.text) else None


def _at_pages(head: _Head) -> CorruptData | None:
    return _markup() if _PAGE.match(head.text) else None


def _markup() -> CorruptData:
    return CorruptData("is XML or HTML, as where a download failed", f"fetch the file itself, or {TO_JSONL}")


def _at_array(head: _Head) -> CorruptData | None:
    is_one = head.text.startswith(b"[") and _is_array(head.text, head.lines, whole=head.whole)
    return CorruptData("is a JSON array", _AS_ARRAY) if is_one else None


def _at_object(head: _Head) -> CorruptData | None:
    is_one = head.text.startswith(b"{") and _object_over_lines(head.lines)
    return CorruptData("is JSON that goes over several lines", "write one object a line: jq -c .") if is_one else None


def _at_quoted_lines(head: _Head) -> CorruptData | None:
    quoted = head.lines and all(line.startswith(b'"{""') for line in head.lines)
    return CorruptData("is JSONL in a table's quotes", "save it as plain text, not as CSV") if quoted else None


def _at_lines(head: _Head) -> CorruptData | None:
    checked = head.ended[:_CHECKED]
    are_objects = checked and all(isinstance(_parsed(line), dict) for line in checked)
    return CorruptData("is JSONL", _RENAME.format("jsonl")) if are_objects else None


def _at_table(head: _Head) -> CorruptData | None:
    """A header and rows with as many fields or more, and no line that could be an object."""
    if len(head.ended) < 2 or head.text[:1] in b"<[{" or any(line.lstrip()[:1] == b"{" for line in head.ended):
        return None
    texts = [line.decode("utf-8", "replace") + "\n" for line in head.ended]
    for delimiter, form in (("\t", "tsv"), (",", "csv"), (";", "csv")):
        header, *rows = (len(row) for row in islice(csv.reader(texts, delimiter=delimiter), 1 + _CHECKED))
        if header > 1 and rows and all(row >= header for row in rows):
            return CorruptData(f"is {form.upper()}, a table", _RENAME.format(form))
    return None


def _at_csv_header(head: _Head) -> CorruptData | None:
    return _at_header(head, "csv")


def _at_tsv_header(head: _Head) -> CorruptData | None:
    return _at_header(head, "tsv")


def _at_header(head: _Head, form: str) -> CorruptData | None:
    rows = head.content.splitlines(keepends=True)
    try:
        read_header(rows if head.whole else rows[:-1], form, whole=head.whole)
    except CorruptData as error:
        return error
    return None


def _at_no_json(head: _Head) -> CorruptData | None:
    none = CorruptData("is not JSON", "write an array of objects, [{…}, {…}]")
    return none if head.text and head.text[:1] not in (b"{", b"[") else None


def _at_rows_within(head: _Head) -> CorruptData | None:
    name = _rows_within(head.text)
    remedy = f"write them one a line: jq -c '.{name}[]'"
    return CorruptData(f"is a JSON document whose rows are within {name!r}", remedy) if name else None


def _at_elements(head: _Head) -> CorruptData | None:
    try:
        begun = _starts(head.text)
    except CorruptData as error:
        return error
    objects = not begun or b"{" in begun
    remedy = "write objects, as by jq '[.[] | {prompt: .}]'"
    return None if objects else CorruptData("is a JSON array without objects", remedy)


_INSTEAD_OF_LINES = (_at_nuls, _at_tags, _at_array, _at_object, _at_quoted_lines, _at_table)
_INSTEAD_OF_TABLE = (_at_binary, _at_pages, _at_lines, _at_quoted_lines, _at_array, _at_object)
_LOOKS: dict[FormatName, tuple[Callable[[_Head], CorruptData | None], ...]] = {
    "jsonl": (_at_no_lines,),
    "csv": (*_INSTEAD_OF_TABLE, _at_csv_header),
    "tsv": (*_INSTEAD_OF_TABLE, _at_tsv_header),
    "json": (_at_binary, _at_tags, _at_table, _at_no_json, _at_rows_within, _at_elements),
}


def _is_array(text: bytes, lines: list[bytes], *, whole: bool) -> bool:
    """Whether it is one array, rather than a line with a list, or a broken one, among others."""
    try:
        begun = _starts(text)
    except CorruptData:
        return False
    if _is_list_a_line(lines):
        return len(lines) == 1 and whole and set(begun) == {b"{"}
    return bool(begun) or len(lines) > 1 or not whole


def _is_list_a_line(lines: list[bytes]) -> bool:
    return bool(lines) and isinstance(_parsed(lines[0]), list)


def _starts(text: bytes) -> list[bytes]:
    """The first byte of each element that ends in these first bytes of an array. Raises CorruptData for a wrong one."""
    found: list[bytes] = []
    try:
        for tiles in cut_elements(_NO_FILE, [text], [(0, None)], len(text)):
            found += [text[tile.start : tile.start + 1] for tile in tiles if not isinstance(tile, Blank)]
    except CorruptData as error:
        if not str(error).startswith("ends "):
            raise
    return found


def _rows_within(text: bytes) -> str:
    """The name of the first field of a document that holds its rows, "" if there is none."""
    found, document = _ROWS_WITHIN.match(text), _parsed(text)
    asks = isinstance(document, dict) and not _ASKING.isdisjoint(document)
    return found[1].decode() if found and not asks else ""


def _object_over_lines(lines: list[bytes]) -> bool:
    """Whether the first line opens what a later one closes; the second one is indented then."""
    if len(lines) < 2 or _parsed(lines[0]) is not None or lines[1][:1] not in {b" ", b"\t", b'"', b"}"}:
        return False
    opened = lines[0].strip()
    return opened == b"{" or opened.endswith((b"{", b"[", b",", b":"))


def _parsed(line: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(line)
    return None
