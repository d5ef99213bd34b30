"""The first row of a CSV or TSV file: its delimiter, and the names of its columns."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass

from llmdo.transforms.unreadable import CorruptData

# By the format's name; of several that give the header the same number of columns the first one counts.
_DELIMITERS = {"csv": ",;\t", "tsv": "\t,;"}
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
# What some spreadsheet programs write as the first line.
_SEPARATOR_LINE = re.compile(r"sep=([,;\t])\r?\n?", re.IGNORECASE)
# What csv says of a quote that is open where the lines end.
UNFINISHED = "unexpected end of data"
# Only such a name can be a field of a line, or in a template.
_PLAIN_NAME = re.compile(r"[^\W\d][\w-]*+")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")
# The most columns that an error names, and the most characters of each.
_MOST, _LONGEST = 8, 40


@dataclass(frozen=True, slots=True)
class TableHeader:
    """The delimiter and the columns of a file, whose rows begin at byte ``stop``.

    Blank lines and a byte order mark may stand in front of the header.
    """

    delimiter: str
    columns: tuple[str, ...]
    stop: int

    @property
    def described(self) -> str:
        """For people."""
        names = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in self.columns[:_MOST]]
        more = ", …" if len(self.columns) > _MOST else ""
        return f"{len(self.columns)} columns ({', '.join(names)}{more}), separated by {_NAMES[self.delimiter]}"


def read_header(lines: list[bytes], form: str, *, whole: bool) -> TableHeader | None:
    """Finds the header in a file's first lines, each whole and with its ending.

    None if more lines are needed; with ``whole`` there are no more, and None says that there is no row at all. Raises
    CorruptData for one that cannot name columns.
    """
    try:
        texts = [line.decode() for line in lines]
    except UnicodeDecodeError:
        texts = [line.decode("utf-8", "surrogateescape") for line in lines]
    if texts:
        texts[0] = texts[0].removeprefix("\ufeff")
    delimiters, first = _DELIMITERS[form], 0
    if texts and (said := _SEPARATOR_LINE.fullmatch(texts[0])):
        delimiters, first = said[1], 1
    while first < len(texts) and not texts[first].strip():
        first += 1
    if first == len(texts):
        return None
    delimiter = max(delimiters, key=lambda one: _columns_by(texts[first:], one))
    reader = csv.reader(iter(texts[first:]), delimiter=delimiter, strict=True)
    try:
        cells = next(reader)
    except csv.Error as error:
        if str(error) == UNFINISHED and not whole:
            return None
        raise CorruptData(
            "has a quote in its first row that is not closed, or is followed by other text",
            "write a quote within a quoted field twice",
        ) from None
    names = tuple(cell.strip() for cell in cells)
    _check(names)
    return TableHeader(delimiter, names, sum(map(len, lines[: first + reader.line_num])))


def _columns_by(texts: list[str], delimiter: str) -> int:
    """How many columns a delimiter gives the first row, whose quotes may be wrong."""
    try:
        return len(next(csv.reader(iter(texts), delimiter=delimiter)))
    except csv.Error:
        return 0


def _check(names: tuple[str, ...]) -> None:
    """Raises CorruptData if a row cannot be the header."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise CorruptData(
            "has a first row that is not UTF-8", "convert the file, as by iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    what = f"has a first row that cannot be its header ({_named(names)}):"
    if empty := [number for number, name in enumerate(names, 1) if not name]:
        raise CorruptData(f"{what} column {empty[0]} has no name", "give each column one, or remove the column")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CorruptData(f"{what} {_short(twice[0])!r} is in it twice", "give each column a name of its own")
    if _NUMBER.fullmatch(names[0]) or not any(map(_PLAIN_NAME.fullmatch, names)):
        raise CorruptData(
            f"{what} {_short(names[0])!r} is a value, not a name",
            "put a first row with the columns' names in front, such as id,prompt",
        )


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(_short(name) for name in names[:_MOST]) + (", …" if len(names) > _MOST else "")


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"
