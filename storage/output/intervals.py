"""Sets of byte ranges: which parts of a file have been answered, and which are gaps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int]  # [start, stop) in bytes


class Intervals:
    """Disjoint half-open ranges, sorted, touching ones merged: a file read in order stays one range.

    Empty ranges ``[n, n)`` cover nothing and are ignored.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in spans:
            self.add(start, stop)

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any byte of [start, stop) is in the set."""
        if start >= stop:
            return False
        i = bisect_right(self._starts, start) - 1
        if i >= 0 and self._stops[i] > start:
            return True
        return i + 1 < len(self._starts) and self._starts[i + 1] < stop

    def add(self, start: int, stop: int) -> None:
        """Adds [start, stop). Raises ValueError if a byte of it is already in the set, or start > stop."""
        if start > stop or start < 0:
            raise ValueError(f"[{start}, {stop}) is not a range")
        if start == stop:
            return
        if self.overlaps(start, stop):
            raise ValueError(f"[{start}, {stop}) overlaps what is there")
        i = bisect_right(self._starts, start)
        joins_left = i > 0 and self._stops[i - 1] == start
        joins_right = i < len(self._starts) and self._starts[i] == stop
        if joins_left and joins_right:
            self._stops[i - 1] = self._stops[i]
            del self._starts[i], self._stops[i]
        elif joins_left:
            self._stops[i - 1] = stop
        elif joins_right:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._stops.insert(i, stop)

    def covers(self, size: int) -> bool:
        """Whether every byte of [0, size) is in the set, and none beyond."""
        return self.spans == (((0, size),) if size else ())

    def gaps(self, size: int) -> Iterator[Span]:
        """The ranges of [0, size) that are not in the set."""
        at = 0
        for start, stop in self.spans:
            if start >= size:
                break
            if at < start:
                yield at, start
            at = stop
        if at < size:
            yield at, size

    @property
    def spans(self) -> tuple[Span, ...]:
        """The ranges, sorted."""
        return tuple(zip(self._starts, self._stops, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self.spans == other.spans

    __hash__ = None  # type: ignore[assignment]  # a set that grows has no stable hash

    def __repr__(self) -> str:
        return f"Intervals({list(self.spans)})"

    def encode(self) -> str:
        """Delta-coded text for an object's metadata: ``4096+120,7+88`` is [4096, 4216) and [4223, 4311)."""
        parts, at = [], 0
        for start, stop in self.spans:
            parts.append(f"{start - at}+{stop - start}")
            at = stop
        return ",".join(parts)

    @classmethod
    def decode(cls, text: str) -> Intervals:
        """Reads what ``encode`` wrote. Raises ValueError."""
        spans, at = [], 0
        for part in text.split(",") if text else ():
            skip, _, length = part.partition("+")
            start = at + int(skip)
            at = start + int(length)
            spans.append((start, at))
        return cls(spans)
