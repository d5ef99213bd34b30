"""Reads a file in stretches, parts that several processes read side by side. No Beam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmdo.transforms.elements import OpenFile, Read, StretchRead, Tile
from llmdo.transforms.lines.reading import UNREADABLE, Reading, gap_of, one_gap_each, read_range, stale_by, unread
from llmdo.transforms.run import Run

# A stretch of at most this size, some 100 lines, is read before larger ones. Bytes.
QUICK_STRETCH = 16 << 10


def is_quick(element: OpenFile, start: int, stop: int) -> bool:
    """Whether a stretch is so small that it need not wait for larger ones."""
    file = element.file
    return file.divisible and min(stop, file.length or 0) - start <= file.positions(QUICK_STRETCH)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The lines that begin in [start, stop) of a file; the last of them may end behind ``stop``.

    Attributes:
        number: distinguishes it from all other stretches of the run, also from an earlier try at the same lines.
        element: its gaps hold all of [start, stop) that is to be read; one that begins within it begins with a line.
        start: in the file's positions; 0 for a file that is not ``divisible``.
        stop: NO_END for such a file.
    """

    number: int
    element: OpenFile
    start: int
    stop: int

    @property
    def quick(self) -> bool:
        """See ``is_quick``."""
        return is_quick(self.element, self.start, self.stop)


def read_stretch(stretch: Stretch, reading: Reading, run: Run) -> Iterator[Read | StretchRead]:
    """The tiles of a stretch, then its StretchRead; a Stale before that where the file cannot be read as it is.

    There is no StretchRead if the run stops meanwhile. Raises StorageErrors that say nothing about the file.
    """
    file = replace(stretch.element.file, stretch=stretch.number)
    element, length = replace(stretch.element, file=file), 0
    instead = unread(element, reading)
    if instead is not None:
        yield instead
        yield StretchRead(file, 0)
        return
    try:
        for tile in _tiles(stretch, element, reading):
            if run.state.stopping:
                return
            length += tile.stop - tile.start
            yield tile
    except UNREADABLE as error:
        yield stale_by(file, error)
    yield StretchRead(file, length)


def _tiles(stretch: Stretch, element: OpenFile, reading: Reading) -> Iterator[Tile]:
    for part in one_gap_each(element):
        if isinstance(part, OpenFile):
            first, last = gap_of(part) if part.file.divisible else (stretch.start, stretch.stop)
            for tiles in read_range(part, max(first, stretch.start), min(last, stretch.stop), reading):
                yield from tiles
