"""Reads tables and arrays the plain way, to compare what the pipeline made of them; see ``oracle``.

Deliberately shares no code with transforms/tables/, nor its mistakes, but for the JSON form of Parquet's values.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from llmdo.runners.inspecting.oracle import LONGEST_COMPARED, SourceLine, source_lines, unpacked
from llmdo.storage.objects.opening import open_store
from llmdo.transforms.elements import FileVersion

# Formats whose content is not all lines: there are headers, brackets and commas as well.
BETWEEN = frozenset(("csv", "tsv", "json"))
_JSON = ("messages", "body")
_DELIMITERS = {"csv": ",;\t", "tsv": "\t,;"}
_BOM = "\xef\xbb\xbf"  # as it looks where each byte is a character
_NAMED = ("sep=,", "sep=;", "sep=\t")
_PIECE = 1 << 20  # bytes read at once
_SPACES = " \t\r\n"
# Of a Parquet file, in memory.
_ROWS_TOGETHER = 64


def lines_of_source(file: FileVersion) -> Iterator[SourceLine]:
    """Every line or row of a source in its order. Raises StorageError, DAMAGED and CorruptData."""
    if file.has_rows:
        return parquet_lines(file)
    content = open_store(file.store_url).stream(file.key, file.etag)
    if file.kind.name in BETWEEN:
        return plain_rows(content, file.key, file.kind.name)
    return source_lines(content, file.key)


def parquet_lines(file: FileVersion) -> Iterator[SourceLine]:
    """Each row of a file as a line, whose offset is the row's number. Raises StorageError and CorruptData.

    Their JSON form is that of transforms/tables/, whose own tests have each type.
    """
    import pyarrow as pa  # noqa: PLC0415  only for such a file
    import pyarrow.parquet as pq  # noqa: PLC0415

    from llmdo.transforms.tables.parquet import as_corrupt  # noqa: PLC0415
    from llmdo.transforms.tables.parquet_json import json_rows  # noqa: PLC0415
    from llmdo.transforms.tables.ranged_file import RangedFile  # noqa: PLC0415

    at = 0
    with as_corrupt():
        opened = pq.ParquetFile(pa.PythonFile(RangedFile(file), mode="r"), pre_buffer=False, buffer_size=1 << 16)
        for batch in opened.iter_batches(_ROWS_TOGETHER, use_threads=False):
            for data in json_rows(batch):
                yield SourceLine(at, at + 1, data if len(data) < LONGEST_COMPARED else None)
                at += 1


def plain_rows(chunks: Iterable[bytes], key: str, form: str) -> Iterator[SourceLine]:
    """Every row or element of a source of one of the formats BETWEEN, and what stands between them. Raises DAMAGED."""
    with unpacked(chunks, key) as content:
        yield from element_lines(content) if form == "json" else table_lines(content, form)


def table_lines(content: BinaryIO, form: str) -> Iterator[SourceLine]:
    """The rows of a CSV or TSV file as JSON objects; those that are none as they stand. In memory: the longest row."""
    csv.field_size_limit(sys.maxsize)
    lines = _Lines(content)
    delimiter, header, start = _header(lines, form)
    if start:
        yield SourceLine(0, start, b"", between=True)
    if header is None:
        return
    while lines.peek():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                taken = lines.taken()
                yield _row(row, header, taken, start)
                start += len(taken)
        except csv.Error:  # the line in which it begins is not a row, and the others are looked at anew
            taken = lines.only_first()
            yield SourceLine(start, start + len(taken), _bytes(taken.removesuffix("\n").removesuffix("\r")))
            start += len(taken)


class _Lines:
    """The lines of a file, each byte a character; those of the current row can be put back."""

    def __init__(self, content: BinaryIO) -> None:
        self._file = io.TextIOWrapper(content, encoding="latin-1", newline="")
        self._back: deque[str] = deque()
        self._row: list[str] = []
        self.skipped = len(_BOM) if self.peek().startswith(_BOM) else 0
        if self.skipped:
            self._back[0] = self._back[0].removeprefix(_BOM)
            self._back = deque(line for line in self._back if line)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else self._file.readline()
        if not line:
            raise StopIteration
        self._row.append(line)
        return line

    def peek(self) -> str:
        """The next line, which stays there; "" at the end."""
        if not self._back and (line := self._file.readline()):
            self._back.append(line)
        return self._back[0] if self._back else ""

    def taken(self) -> str:
        """The lines since the last call."""
        row, self._row = "".join(self._row), []
        return row

    def only_first(self) -> str:
        """As ``taken``, but all lines except the first are put back."""
        first = self._row.pop(0)
        self.put_back()
        return first

    def put_back(self) -> None:
        """All that would be taken."""
        self._back.extendleft(reversed(self._row))
        self._row = []


def _header(lines: _Lines, form: str) -> tuple[str, list[str] | None, int]:
    """The delimiter, the names, or None where there is no row, and where the first row begins."""
    delimiters, start = _DELIMITERS[form], lines.skipped
    while (line := lines.peek()) and (not line.strip(_SPACES) or (named := line.strip("\r\n").lower()[:5]) in _NAMED):
        delimiters = named[4] if line.strip(_SPACES) else delimiters
        start += len(next(lines))
    lines.taken()
    if not line:
        return ",", None, start
    names: dict[str, list[str]] = {}
    for delimiter in delimiters:
        names[delimiter] = next(csv.reader(lines, delimiter=delimiter))
        lines.put_back()
    delimiter = max(delimiters, key=lambda one: len(names[one]))
    next(csv.reader(lines, delimiter=delimiter))
    return delimiter, [_bytes(name).decode().strip() for name in names[delimiter]], start + len(lines.taken())


def _row(row: list[str], header: list[str], taken: str, start: int) -> SourceLine:
    raw = taken[:-2] if taken.endswith("\r\n") else taken[:-1] if taken.endswith(("\n", "\r")) else taken
    stop = start + len(taken)
    try:
        texts = [_bytes(cell).decode() for cell in row]
    except UnicodeDecodeError:
        return SourceLine(start, stop, _bytes(raw))
    if len(row) <= 1 and not raw.strip(_SPACES):
        return SourceLine(start, stop, b"")
    if len(row) != len(header):
        return SourceLine(start, stop, _bytes(raw))
    cells = zip(header, texts, strict=True)
    fields = {name: _value(name, text) for name, text in cells if text.strip() or name not in _JSON}
    return SourceLine(start, stop, json.dumps(fields).encode())


def _value(name: str, text: str) -> Any:
    """A cell: text, but for an array or an object in a column of this name."""
    if name in _JSON:
        with suppress(ValueError, RecursionError):
            found = json.loads(text, parse_constant=_finite, parse_float=_finite)
            if isinstance(found, list | dict):
                return found
    return text


def _finite(text: str) -> float:
    """Raises ValueError for what JSON cannot represent, and for a number that is too large."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def element_lines(content: BinaryIO) -> Iterator[SourceLine]:
    """The elements of a JSON array, or one object, as they stand. In memory: a piece, and the longest element.

    Raises EOFError where it ends in the middle.
    """
    text, at, uncovered = _Text(content), 0, 0
    at += len(_BOM) if text.starts(at, _BOM) else 0
    at = text.skip(at, _SPACES)
    if text.starts(at, "["):
        at += 1
    elif not text.starts(at, "{"):
        if at:
            yield SourceLine(0, at, b"", between=True)
        return
    while True:
        at = text.skip(at, _SPACES + ",")
        if not text.at(at) or text.starts(at, "]"):
            break
        end = text.end_of_element(at)
        if at > uncovered:
            yield SourceLine(uncovered, at, b"", between=True)
        yield SourceLine(at, end, _bytes(text.between(at, end)))
        at = uncovered = end
        text.forget(at)
    end = text.skip(at + 1, _SPACES) if text.at(at) else at
    if end > uncovered:
        yield SourceLine(uncovered, end, b"", between=True)


class _Text:
    """A stream as text, each byte a character, by offsets; what comes before ``forget`` is not kept."""

    def __init__(self, content: BinaryIO) -> None:
        self._content, self._text, self._start, self._size = content, "", 0, _PIECE

    def _more(self) -> bool:
        """Reads on, each time twice as much for one element."""
        piece = self._content.read(self._size)
        self._text += piece.decode("latin-1")
        self._size *= 2
        return bool(piece)

    def forget(self, offset: int) -> None:
        if offset - self._start > _PIECE:
            self._text, self._start, self._size = self._text[offset - self._start :], offset, _PIECE

    def at(self, offset: int) -> str:
        """The character there, "" at the end."""
        while offset - self._start >= len(self._text):
            if not self._more():
                return ""
        return self._text[offset - self._start]

    def starts(self, offset: int, text: str) -> bool:
        return all(self.at(offset + i) == character for i, character in enumerate(text))

    def skip(self, offset: int, characters: str) -> int:
        while (one := self.at(offset)) and one in characters:
            offset += 1
        return offset

    def between(self, start: int, stop: int) -> str:
        return self._text[start - self._start : stop - self._start]

    def end_of_element(self, start: int) -> int:
        """Where an element ends that is JSON, or else where its brackets close. Raises EOFError."""
        while True:
            begin = start - self._start
            end = _end_of_json(self._text, begin)
            if end is None:
                end = _end_by_brackets(self._text, begin)
            if end is not None and end < len(self._text):
                return self._start + end
            if not self._more():
                if end is not None:
                    return self._start + end
                raise EOFError("it ends in the middle of an element")


def _end_of_json(text: str, begin: int) -> int | None:
    """Where a text, an array or an object ends; None if it is not JSON, or something else."""
    if text[begin] in '"[{':
        with suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(text, begin)[1]
    return None


def _end_by_brackets(text: str, begin: int) -> int | None:
    """Where something ends that is not JSON; None if that is behind the text."""
    depth, i = 0, begin
    while i < len(text):
        one = text[i]
        i += 1
        if one == '"':
            while i < len(text) and text[i] != '"':
                i += 2 if text[i] == "\\" else 1
            i += 1
        elif one in "{[":
            depth += 1
        elif one in "}]":
            depth -= 1
        elif depth == 0:
            while i < len(text) and text[i] not in ' \t\r\n,"{}[]':
                i += 1
        if depth == 0:
            return i if i <= len(text) else None
    return None
