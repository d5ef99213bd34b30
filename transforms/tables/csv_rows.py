"""Cuts a stream of CSV or TSV (RFC 4180) into its rows, each with its bytes; in memory: a block and the longest row."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any

import orjson

from llmdo.transforms.elements import Blank, FileVersion, Line, Tile, TooLong
from llmdo.transforms.tables.csv_header import UNFINISHED, TableHeader, read_header
from llmdo.transforms.tables.look_ahead import BLOCK, LookAhead
from llmdo.transforms.tables.quotes import QuoteInRow, QuoteOverLines, RowEnd
from llmdo.transforms.unreadable import CorruptData

_log = logging.getLogger(__name__)

# Columns that are of no use as text: an array or an object in them is read as JSON, and an empty cell is left out.
JSON_COLUMNS = frozenset(("messages", "body"))
# What a row within its limit has behind its data: "\r\n". Bytes.
_ENDING = 2
_NOT_UTF8 = "the row is not UTF-8: convert the file, as by iconv -f WINDOWS-1252 -t UTF-8"
_TWICE = "write a quote within a quoted field twice"


def cut_rows(
    file: FileVersion, chunks: Iterable[bytes], spans: Iterable[tuple[int, int | None]], limit: int
) -> Iterator[list[Tile]]:
    """Yields the rows of some spans of a stream that begins at offset 0, then the end mark with the stream's length.

    A row's data is a JSON object with the text of each column, except that one of JSON_COLUMNS may hold JSON itself; a
    row that cannot be one has a ``problem``. A tile has its row's line ending ("\\n", "\\r\\n" or "\\r"). The header is
    a Blank of its own, with the blank lines in front of it. Spans are sorted, do not overlap, and begin and end between
    rows; a stop of None is the stream's end. Rows of more than ``limit`` bytes come as TooLong. Raises CorruptData for
    a header that cannot be one and, perhaps after some rows, for a quote that is not closed within ``limit`` bytes.
    """
    if csv.field_size_limit() < max(limit, BLOCK) * 4:
        csv.field_size_limit(min(max(limit, BLOCK) * 4, sys.maxsize))
    source = LookAhead(chunks)
    header = _header(source, file.kind.name, limit)
    first = header.stop if header else 0
    if header is not None:
        _log.info("%s has %s", file.place, header.described)
    for start, stop in spans:
        if start < first:
            yield [Blank(file, 0, first, between=True)]
        if header is not None and (stop is None or max(start, first) < stop):
            source.pass_to(max(start, first))
            yield from _Rows(file, source, header, limit).until(stop)
    source.pass_to(None)
    if header is None and source.at:
        yield [Blank(file, 0, source.at, between=True)]
    yield [Blank(file, source.at, source.at, total=source.at)]


def _header(source: LookAhead, form: str, limit: int) -> TableHeader | None:
    """Reads as far as the header needs; takes nothing."""
    while True:
        source.more(max(BLOCK, len(source.buffer)))
        lines = source.buffer.splitlines(keepends=True)
        if not source.ended and lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        header = read_header(lines, form, whole=source.ended)
        if header is not None or source.ended:
            return header
        if len(source.buffer) > limit + _ENDING:
            if not source.buffer.strip(b" \t\r\n"):
                raise CorruptData(f"begins with {limit:,} bytes of blank lines", "remove them")
            raise CorruptData(
                f"has a first row of more than {limit:,} bytes", "close its quotes, or raise --max-line-bytes"
            )


class _Rows:
    """Cuts one span of a stream."""

    def __init__(self, file: FileVersion, source: LookAhead, header: TableHeader, limit: int) -> None:
        self._file, self._source, self._limit = file, source, limit
        self._columns, self._delimiter = header.columns, header.delimiter
        self._object = _object_with_json if JSON_COLUMNS & set(header.columns) else _object

    def until(self, stop: int | None) -> Iterator[list[Tile]]:
        source, wanted = self._source, 0 if self._source.buffer else BLOCK
        while True:
            source.more(wanted)
            data, last = source.buffer, source.ended
            if stop is not None and source.at + len(data) >= stop:
                data, last = data[: stop - source.at], True
            lines = data.splitlines(keepends=True)
            if not last and lines and not lines[-1].endswith(b"\n"):
                lines.pop()
            tiles = self._tiles(lines, last=last)
            if tiles:
                used = tiles[-1].stop - source.at
                source.take(used)
                yield tiles
            if last:
                return
            if len(source.buffer) > self._limit + _ENDING:
                yield [self._too_long(stop)]
            # The begin of a row is looked at again with as much behind it: each byte a few times at most.
            wanted = max(BLOCK, len(source.buffer))

    def _tiles(self, lines: list[bytes], *, last: bool) -> list[Tile]:
        """The rows that end in some lines; those of the ``last`` lines of a span all end there."""
        offsets = list(accumulate(map(len, lines), initial=self._source.at))
        try:
            texts, checked = list(map(bytes.decode, lines)), True
        except UnicodeDecodeError:
            texts, checked = [line.decode("utf-8", "surrogateescape") for line in lines], False
        file, columns, limit, as_object = self._file, self._columns, self._limit, self._object
        # A row that is right needs no look at its bytes, unless it may be blank.
        width = len(columns) if checked and len(columns) > 1 else -1
        tiles: list[Tile] = []
        done = 0
        while done < len(lines):
            begin = done
            reader = csv.reader(_from(texts, begin), delimiter=self._delimiter, strict=True)
            try:
                for row in reader:
                    end = begin + reader.line_num
                    start, stop = offsets[done], offsets[end]
                    if len(row) == width and stop - start <= limit:
                        tiles.append(Line(file, start, stop, as_object(columns, row)))
                    else:
                        tiles.append(self._tile(row, lines[done:end], start, stop, checked=checked))
                    done = end
            except csv.Error as error:
                if str(error) == UNFINISHED and not last:
                    break  # its quote may be closed in a later line
                tiles.append(self._unreadable(lines[done : begin + reader.line_num], offsets[done]))
                done += 1
        return tiles

    def _tile(self, row: list[str], lines: list[bytes], start: int, stop: int, *, checked: bool) -> Tile:
        if stop - start > self._limit and len(_raw(lines)) > self._limit:
            return TooLong(self._file, start, stop)
        if len(row) <= 1 and not _raw(lines).strip(b" \t\r"):
            return Blank(self._file, start, stop)
        if not checked and _is_not_utf8(lines):
            return Line(self._file, start, stop, _raw(lines), _NOT_UTF8)
        if len(row) != len(self._columns):
            return Line(self._file, start, stop, _raw(lines), self._miscounted(len(row)))
        return Line(self._file, start, stop, self._object(self._columns, row))

    def _miscounted(self, fields: int) -> str:
        named = f"the row has {fields:,} field{'' if fields == 1 else 's'}, and the header names {len(self._columns):,}"
        if fields > len(self._columns):
            return f"{named}: put fields that hold {self._delimiter!r} in double quotes"
        return f"{named}: leave no field out, an empty one has its delimiter too"

    def _unreadable(self, lines: list[bytes], start: int) -> Line | TooLong:
        """The first line of a row whose quotes are wrong; the others are rows of their own, which it would swallow.

        Raises CorruptData if they are too much for a row.
        """
        raw, stop = _raw(lines[:1]), start + len(lines[0])
        end = RowEnd(self._delimiter, start)
        try:
            end.find(b"".join(lines))
            end.close()
            problem = f"its quotes cannot be read: {_TWICE}"  # csv knows better
        except QuoteOverLines as error:
            if len(lines) > 1 and len(_raw(lines)) > self._limit:
                raise self._not_closed(error) from None
            problem = f"the quote that opens at byte {error.at} is not closed: close it; {_TWICE}"
        except QuoteInRow as error:
            problem = f"the quoted field at byte {error.at} goes on behind its closing quote: {_TWICE}"
        if len(raw) > self._limit:
            return TooLong(self._file, start, stop)
        return Line(self._file, start, stop, raw, problem)

    def _too_long(self, stop: int | None) -> TooLong:
        """Takes a row that exceeds the limit, and keeps none of it. Raises CorruptData if a quote is the cause."""
        source, start = self._source, self._source.at
        end = RowEnd(self._delimiter, start, lenient=True)
        try:
            while True:
                data = source.buffer if stop is None else source.buffer[: stop - source.at]
                found = end.find(data)
                source.take(len(data) if found is None else found)
                if found is not None or (stop is not None and source.at >= stop):
                    break
                if source.ended:
                    end.close()
                    break
                source.more(BLOCK)
        except QuoteOverLines as error:
            raise self._not_closed(error) from None
        return TooLong(self._file, start, source.at)

    def _not_closed(self, error: QuoteOverLines) -> CorruptData:
        return CorruptData(
            f"has a quote at byte {error.at} that is not closed within {self._limit:,} bytes",
            f"close it, {_TWICE}, or raise --max-line-bytes",
        )


def _object(columns: tuple[str, ...], row: list[str]) -> bytes:
    return orjson.dumps(dict(zip(columns, row, strict=True)))


def _object_with_json(columns: tuple[str, ...], row: list[str]) -> bytes:
    fields: dict[str, Any] = dict(zip(columns, row, strict=True))
    for name in JSON_COLUMNS & fields.keys():
        if not fields[name].strip():
            del fields[name]  # another column says what to ask
        elif fields[name].lstrip()[:1] in ("[", "{"):
            with suppress(orjson.JSONDecodeError):  # it stays text, which the line's own error is about
                orjson.loads(fields[name])
                fields[name] = orjson.Fragment(fields[name])
    return orjson.dumps(fields)


def _from(texts: list[str], begin: int) -> Iterator[str]:
    return iter(texts) if begin == 0 else (texts[i] for i in range(begin, len(texts)))


def _raw(lines: list[bytes]) -> bytes:
    """A row without its line ending."""
    data = lines[0] if len(lines) == 1 else b"".join(lines)
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data.removesuffix(b"\r")


def _is_not_utf8(lines: list[bytes]) -> bool:
    try:
        b"".join(lines).decode()
    except UnicodeDecodeError:
        return True
    return False
