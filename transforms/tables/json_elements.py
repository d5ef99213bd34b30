"""Cuts a stream of one JSON array into its elements, each with its bytes; in memory: a block and the longest one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from llmdo.transforms.elements import Blank, FileVersion, Line, Tile, TooLong
from llmdo.transforms.tables.look_ahead import BLOCK, BOM, LookAhead
from llmdo.transforms.unreadable import CorruptData

# Possessive, so that no input makes them try again: each looks at a byte once.
_SPACE = re.compile(rb"[ \t\r\n]*+")
# Within an element, up to the next bracket; a quote is where a string begins that does not end in the buffer.
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
# The rest of a string: up to its closing quote, or to a backslash that is the buffer's last byte.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^ \t\r\n,"{}\[\]]*+')
_QUOTE, _COMMA, _END = b'",]'
_OPENING, _STARTS = b"{[", b'{["'
# The most bytes in front of an array.
_MOST_BLANK = 1 << 20


def cut_elements(
    file: FileVersion, chunks: Iterable[bytes], spans: Iterable[tuple[int, int | None]], limit: int
) -> Iterator[list[Tile]]:
    """Yields the elements of some spans of a stream that begins at offset 0, then the end mark with its length.

    The stream is one array, or one object, which is then the only element. A tile is an element from its first byte to
    its last one; what stands between two, in front of the first and behind the last, is a Blank. Brackets are paired
    and strings skipped; whether an element is JSON is for its reader. Spans are sorted, do not overlap, and begin and
    end at the borders of tiles; a stop of None is the stream's end. Elements of more than ``limit`` bytes come as
    TooLong. Raises CorruptData, perhaps after some elements, where the array is not closed, or continues wrongly.
    """
    source = LookAhead(chunks)
    array = _is_array(source)
    for start, stop in spans:
        if stop is None or start < stop:
            source.pass_to(start)
            yield from _Elements(file, source, limit, array=array).until(stop)
    source.pass_to(None)
    yield [Blank(file, source.at, source.at, total=source.at)]


def _is_array(source: LookAhead) -> bool:
    """Looks for the first bracket, and takes nothing but blanks. Raises CorruptData."""
    while True:
        source.more(BLOCK)
        first = source.buffer.removeprefix(BOM).lstrip(b" \t\r\n")[:1]
        if first in (b"[", b"{"):
            return first == b"["
        if first or len(source.buffer) > _MOST_BLANK:
            raise CorruptData("is not a JSON array", "write [ in front of its elements, and ] behind them")
        if source.ended:
            return True


class _Elements:
    """Cuts one span of a stream, which begins in front of the array or right behind an element."""

    def __init__(self, file: FileVersion, source: LookAhead, limit: int, *, array: bool) -> None:
        self._file, self._source, self._limit, self._array = file, source, limit, array
        self._expected = _first_expected(array=array) if source.at == 0 else _next_expected(array=array)
        self._from = source.at  # where the bytes begin that no tile covers yet
        self._begin: int | None = None  # where an element begins whose end was not seen yet
        self._depth, self._quoted = 0, False  # of what is looked at: brackets that are open; it is within a string

    def until(self, stop: int | None) -> Iterator[list[Tile]]:
        source, looked, wanted = self._source, 0, 0 if self._source.buffer else BLOCK
        while True:
            source.more(wanted)
            data, last = source.buffer, source.ended
            if stop is not None and source.at + len(data) >= stop:
                data, last = data[: stop - source.at], True
            tiles, seen = self._tiles(data, looked)
            if tiles:
                yield tiles
            keeps = self._begin is not None and source.at + seen - self._begin <= self._limit
            used = max(0, (self._begin or 0) - source.at) if keeps else seen
            source.take(used)
            looked = seen - used
            if last:
                break
            wanted = max(BLOCK, len(source.buffer))
        if stop is None and (self._begin is not None or self._expected not in ("nothing", "array")):
            raise CorruptData("ends in the middle of its array" if self._array else "ends in the middle of its object")
        if self._from < source.at:
            yield [Blank(self._file, self._from, source.at, between=True)]

    def _tiles(self, data: bytes, looked: int) -> tuple[list[Tile], int]:
        """The tiles that end in the buffer, and how far it was looked at: from ``looked`` on this time."""
        tiles, at, i = list[Tile](), self._source.at, looked
        while i < len(data):
            begin = self._begin
            if begin is None:
                i = self._look_between(data, i)
                if self._begin is not None and self._from < self._begin:
                    tiles.append(Blank(self._file, self._from, self._begin, between=True))
                continue
            before = i
            i, ends = self._look_within(data, i)
            if ends:
                fits = at + i - begin <= self._limit
                tiles.append(
                    Line(self._file, begin, at + i, data[begin - at : i])
                    if fits
                    else TooLong(self._file, begin, at + i)
                )
                self._from, self._begin, self._expected = at + i, None, _next_expected(array=self._array)
            elif i == before:
                break  # at a backslash whose character has not come yet
        return tiles, i

    def _look_between(self, data: bytes, i: int) -> int:
        """Goes on in front of an element, behind a bracket, a comma or spaces; it ``_begin``s where it stands then."""
        at = self._source.at
        if at + i == 0:
            i = len(BOM) if data.startswith(BOM) else 0
        found = _SPACE.match(data, i)
        i = found.end() if found else i
        if i == len(data):
            return i
        byte, expected = data[i], self._expected
        if expected == "array":
            self._expected = "element"
        elif expected == "element" and byte not in b",}]:":
            self._begin, self._depth, self._quoted = at + i, 0, False
            return i
        elif byte == _END and expected in ("element", "comma") and self._array:
            self._expected = "nothing"
        elif byte == _COMMA and expected == "comma":
            self._expected = "element"
        else:
            raise self._wrong(at + i)
        return i + 1

    def _look_within(self, data: bytes, i: int) -> tuple[int, bool]:
        """Goes on in an element: the next index, and whether the element ends there."""
        if self._quoted:
            i = _end_of(_IN_STRING, data, i)
            if i == len(data) or data[i] != _QUOTE:
                return i, False
            self._quoted = False
            return i + 1, self._depth == 0
        begins = self._source.at + i == self._begin
        if self._depth == 0 and not (begins and data[i] in _STARTS):
            end = _end_of(_SCALAR, data, i)
            return end, end < len(data)
        i = _end_of(_TO_BRACKET, data, i) if self._depth else i
        if i == len(data):
            return i, False
        if data[i] == _QUOTE:
            self._quoted = True
        else:
            self._depth += 1 if data[i] in _OPENING else -1
        return i + 1, self._depth == 0 and not self._quoted

    def _wrong(self, place: int) -> CorruptData:
        """The error for a byte that may not stand there."""
        if self._expected == "nothing":
            if not self._array:
                return CorruptData(f"has something behind its object, at byte {place}", "write one a line: jq -c .")
            return CorruptData(f"has something behind the ] of its array, at byte {place}", "remove it")
        what = "a comma or ] is missing in its array" if self._expected == "comma" else "an element is missing"
        return CorruptData(f"is not a JSON array: {what} at byte {place}", "correct it")


def _first_expected(*, array: bool) -> str:
    return "array" if array else "element"


def _next_expected(*, array: bool) -> str:
    return "comma" if array else "nothing"


def _end_of(pattern: re.Pattern[bytes], data: bytes, i: int) -> int:
    """Where a pattern that also matches nothing ends."""
    found = pattern.match(data, i)
    return found.end() if found else i
