"""Reads files on a runner that runs no splittable DoFn, and has one bundle of a stage at a time in each slot: Flink.

A bundle there ends when it has a set number of elements, and the next one waits until its last call has ended. So lines
travel in parcels of a few, which makes bundles larger; and what follows is several stages side by side, the lanes, each
with a bundle of its own: while one waits for its last calls, the others fill the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import apache_beam as beam
from apache_beam.pvalue import PCollection, TaggedOutput

from llmdo.transforms.elements import KnownShard, Leftovers, Line, Opened, OpenFile, Read, Tile
from llmdo.transforms.lines.reading import (
    NO_END,
    UNREADABLE,
    Reading,
    gap_of,
    one_gap_each,
    ranges_of,
    read_range,
    stale_by,
    unread,
)
from llmdo.transforms.members import join
from llmdo.transforms.run import Run

# A parcel has this many lines, or fewer once they have about this many bytes together.
PARCEL_LINES = 4
PARCEL_BYTES = 256 << 10


def parcels_in_bundle(window: int) -> int:
    """How many parcels a bundle should have, for ``window`` calls in flight that sixteen lanes share.

    Long bundles hold answers back, short ones mostly drain: a bundle of one window of lines occupies its lane some 16
    times as long as a call. Files of one line make parcels of one line: the lanes together then hold four windows.
    """
    return max(2, -(-window // 4))


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ReadPlanned(beam.PTransform):
    """Reads as ReadLines does; the tiles come out of ``reading.lanes`` stages, and what follows is fused to each.

    A file that is not ``divisible`` is one range, and nothing of a range is emitted before all of it is read: it is in
    memory.
    """

    reading: Reading
    run: Run

    def expand(self, files: PCollection[Opened]) -> PCollection[Read]:
        """Opened → Read."""
        names = [f"lane {number}" for number in range(self.reading.lanes)]
        lanes = (
            files
            | "Plan ranges" >> beam.FlatMap(plan, self.reading).with_output_types(Planned)
            | "Spread ranges" >> beam.Reshuffle()
            | "Read a range" >> beam.ParDo(_ReadParcels(self.reading, self.run)).with_outputs(*names)
        )
        return [
            lanes[name]
            | f"Spread {name}" >> beam.Reshuffle()
            | f"One line each of {name}" >> beam.FlatMap().with_output_types(Read)
            for name in names
        ] | "Lanes" >> beam.Flatten()


@dataclass(frozen=True, slots=True)
class Planned:
    """An element of ``one_gap_each``, and the range [start, stop) of its positions that is to be read."""

    element: Opened
    start: int = 0
    stop: int = 0


def plan(element: Opened, reading: Reading) -> Iterator[Planned]:
    """The ranges of a file; any other element as it is."""
    for part in one_gap_each(element):
        if isinstance(part, KnownShard | Leftovers) or unread(part, reading) is not None:
            yield Planned(part)
        elif not part.file.divisible:
            yield Planned(part, 0, NO_END)
        else:
            size = part.file.positions(reading.range_bytes)
            for start, stop in ranges_of(part, *gap_of(part), size):
                yield Planned(part, start, stop)


def read_planned(planned: Planned, reading: Reading, run: Run) -> Iterator[list[Read]]:
    """What a range holds, in parcels; a Stale at the end where the file is gone, changed or corrupt."""
    element = planned.element
    if not isinstance(element, OpenFile):
        yield [element]
        return
    instead = unread(element, reading)
    if instead is not None:
        yield [instead]
        return
    try:
        for tiles in read_range(element, planned.start, planned.stop, reading):
            for parcel in parcels(tiles):
                if run.state.stopping:
                    return
                yield parcel
    except UNREADABLE as error:
        yield [stale_by(element.file, error)]


def parcels(tiles: Iterable[Tile]) -> Iterator[list[Read]]:
    """Tiles in their order, a few at a time."""
    parcel: list[Read] = []
    size = 0
    for tile in tiles:
        length = len(tile.data) if isinstance(tile, Line) else 0
        if parcel and (len(parcel) == PARCEL_LINES or size + length > PARCEL_BYTES):
            yield parcel
            parcel, size = [], 0
        parcel.append(tile)
        size += length
    if parcel:
        yield parcel


class _ReadParcels(beam.DoFn):
    """Deals the parcels out to the lanes, one after the other."""

    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading = reading
        self._run = run

    def setup(self) -> None:
        join(self._run)
        self._dealt = count()

    def process(self, planned: Planned) -> Iterator[TaggedOutput]:
        for parcel in read_planned(planned, self._reading, self._run):
            yield TaggedOutput(f"lane {next(self._dealt) % self._reading.lanes}", parcel)
