"""Reads a file in stretches, parts that several processes read side by side. No Beam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmdo.transforms.elements import OpenFile, Read, StretchRead
from llmdo.transforms.lines.reading import UNREADABLE, Reading, read_range, stale_by, unread
from llmdo.transforms.run import Run


@dataclass(frozen=True, slots=True)
class Stretch:
    """The lines that begin in [start, stop) of a file; the last of them may end behind ``stop``.

    Attributes:
        number: distinguishes it from all other stretches of the run, also from an earlier try at the same lines.
        element: an element of ``one_gap_each``, whose gap holds [start, stop).
        start: in bytes of the file's content; 0 for a compressed file.
        stop: NO_END for a compressed file.
    """

    number: int
    element: OpenFile
    start: int
    stop: int


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
        for tiles in read_range(element, stretch.start, stretch.stop, reading):
            for tile in tiles:
                if run.state.stopping:
                    return
                length += tile.stop - tile.start
                yield tile
    except UNREADABLE as error:
        yield stale_by(file, error)
    yield StretchRead(file, length)
