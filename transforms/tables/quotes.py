"""Finds where a row of CSV ends without keeping it, and which quote is wrong in one that does not."""

from __future__ import annotations

import re

_QUOTE, _LF, _CR = ord('"'), ord("\n"), ord("\r")


class QuoteInRow(Exception):
    """The quoted field at byte ``at`` goes on behind its closing quote, in the row's first line."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class QuoteOverLines(QuoteInRow):
    """The same where the closing quote is in a later line, or there is none: the opening one may be the wrong one."""


class RowEnd:
    """Looks through a row that begins at offset ``start`` and comes in pieces.

    Args:
        lenient: a closing quote that is followed by other text does not matter within the row's first line.
    """

    def __init__(self, delimiter: str, start: int, *, lenient: bool = False) -> None:
        self._at, self._delimiter, self._lenient = start, ord(delimiter), lenient
        self._plain = re.compile(b"[\r\n" + re.escape(delimiter.encode()) + b"]")
        self._inner = re.compile(b'["\r\n]')
        self._opened = 0
        self._crossed = False  # whether a line ended within quotes
        self._next = self._begin

    def find(self, data: bytes) -> int | None:
        """How much of the next piece belongs to the row; None if it does not end there. Raises QuoteInRow."""
        i: int | None = 0
        while i is not None and i < len(data):
            i, end = self._next(data, i)
            if end:
                return i
        self._at += len(data)
        return None

    def close(self) -> None:
        """The stream ends here. Raises QuoteOverLines."""
        if self._next == self._quoted and (self._crossed or not self._lenient):
            raise QuoteOverLines(self._opened)

    # Each takes the data from index i on, and gives the next index and whether the row ends there.

    def _begin(self, data: bytes, i: int) -> tuple[int, bool]:
        if data[i] == _QUOTE:
            self._opened, self._next = self._at + i, self._quoted
            return i + 1, False
        self._next = self._unquoted
        return i, False

    def _unquoted(self, data: bytes, i: int) -> tuple[int, bool]:
        found = self._plain.search(data, i)
        if found is None:
            return len(data), False
        return self._after(data, found.start())

    def _quoted(self, data: bytes, i: int) -> tuple[int, bool]:
        found = (self._inner if not self._crossed else _ONLY_QUOTE).search(data, i)
        if found is None:
            return len(data), False
        if data[found.start()] == _QUOTE:
            self._next = self._closed
        else:
            self._crossed = True
        return found.end(), False

    def _closed(self, data: bytes, i: int) -> tuple[int, bool]:
        if data[i] == _QUOTE:
            self._next = self._quoted
            return i + 1, False
        if data[i] in (self._delimiter, _CR, _LF):
            return self._after(data, i)
        if self._crossed:
            raise QuoteOverLines(self._opened)
        if not self._lenient:
            raise QuoteInRow(self._opened)
        self._next = self._unquoted
        return i, False

    def _after(self, data: bytes, i: int) -> tuple[int, bool]:
        """At a delimiter, or at the row's end."""
        if data[i] == self._delimiter:
            self._next = self._begin
            return i + 1, False
        if data[i] == _LF:
            return i + 1, True
        self._next = self._returned
        return i + 1, False

    def _returned(self, data: bytes, i: int) -> tuple[int, bool]:
        """Behind a "\\r"."""
        return (i + 1 if data[i] == _LF else i), True


_ONLY_QUOTE = re.compile(b'"')
