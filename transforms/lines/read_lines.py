"""Files cut into lines, in parallel and with their byte offsets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.pvalue import PCollection
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from llmdo.transforms.elements import Blank, KnownShard, Leftovers, Opened, OpenFile, Read, Tile
from llmdo.transforms.lines.lanes import Lanes, ReadingTurn, next_group
from llmdo.transforms.lines.planned import ReadPlanned
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
from llmdo.transforms.run import Run

_THE_REST = (NO_END, NO_END)  # claiming this is always refused, and leaves nothing of the range
# Where bundles take turns, a gap is split into at least this many ranges a lane, if they have some 100 lines. Bytes.
RANGES_A_LANE = 4
SMALLEST_RANGE = 16 << 10


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ReadLines(beam.PTransform):
    """Reads the gaps of open files as tiles, each with its line; other elements pass through.

    The tiles of a file cover its gaps without gap or overlap, however the runner splits. An empty file and one that is
    not ``divisible`` end with an end mark, a Blank [n, n) whose ``total`` is n. A file that is gone, changed or corrupt
    yields a Stale for each range that finds it so, perhaps after some lines. Other StorageErrors are raised. When the
    run stops early, the rest of the ranges is left out.

    Args:
        reading: bytes of a range, and at most of a line and of a file.
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
    """

    reading: Reading
    run: Run

    def expand(self, files: PCollection[Opened]) -> PCollection[Read]:
        """See the class."""
        if self.reading.planned:
            return files | "Read as planned" >> ReadPlanned(self.reading, self.run)
        gaps = files | "One gap each" >> beam.FlatMap(one_gap_each)
        if self.reading.at_once:
            return gaps | "Read gaps" >> beam.FlatMap(read_gap, self.reading, self.run)
        return (
            gaps | "Read ranges" >> beam.ParDo(_ReadRange(self.reading, self.run)) | "One line each" >> beam.FlatMap()
        )


def range_size(reading: Reading, length: int, unit: int = 1) -> int:
    """How many positions of ``unit`` bytes a range of a gap has: fewer where bundles take turns, so that there is work
    for each lane.
    """
    most = max(1, reading.range_bytes // unit)
    if reading.checkpoint_seconds is None:
        return most
    return min(most, max(SMALLEST_RANGE // unit, length // (RANGES_A_LANE * reading.lanes)))


def read_gap(element: Opened, reading: Reading, run: Run) -> Iterator[Read]:
    """What an element of ``one_gap_each`` holds; see ReadLines."""
    if isinstance(element, KnownShard | Leftovers):
        yield element
        return
    instead = unread(element, reading)
    if instead is not None:
        yield instead
        return
    start, stop = gap_of(element) if element.file.divisible else (0, NO_END)
    try:
        for tiles in read_range(element, start, stop, reading):
            for tile in tiles:
                if run.state.stopping:
                    return
                yield tile
    except UNREADABLE as error:
        yield stale_by(element.file, error)


@dataclass(frozen=True, slots=True)
class _Range:
    """The lines that begin in [start, stop), in the file's positions.

    The range of a known shard, and of a file that is empty or too large, is [0, 0), which nothing can split: it comes
    out once.

    Attributes:
        seekable: reading can begin in the middle. Not so in a file that is not ``divisible``: a runner cannot split
            it, and after a self-checkpoint it is read from its begin again.
        fresh: it was never deferred, nor split off while it was read.
    """

    start: int
    stop: int
    seekable: bool = True
    fresh: bool = True


class _Tracker(RestrictionTracker):
    """Splits a range between the lines that are claimed and the rest. A position is a line's (start, stop).

    Claiming a line claims all in front of it. A refused claim says that the range ends before this line; the lines
    that begin in the range may still be claimed then, whereas OffsetRestrictionTracker demands rising positions.
    """

    def __init__(self, restriction: _Range) -> None:
        self._range = restriction
        self._claimed = restriction.start  # where the first line begins that is not claimed
        self._exhausted = False

    def current_restriction(self) -> _Range:
        return self._range

    def try_claim(self, position: tuple[int, int]) -> bool:
        start, stop = position
        if start >= self._range.stop:
            self._exhausted = True
            return False
        self._claimed = stop
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[_Range, _Range] | None:
        """A checkpoint (fraction 0) works on every range, and before the first claim: then the primary is empty."""
        at = self._claimed + int((self._range.stop - self._claimed) * fraction_of_remainder)
        if at >= self._range.stop or (fraction_of_remainder > 0 and not self._range.seekable):
            return None
        residual = replace(self._range, start=at, fresh=False)
        self._range = replace(self._range, stop=at)
        return self._range, residual

    def current_progress(self) -> RestrictionProgress:
        size = self._range.stop - self._range.start
        return RestrictionProgress(fraction=min(1.0, (self._claimed - self._range.start) / size) if size else 1.0)

    def check_done(self) -> bool:
        if not self._exhausted and self._claimed < self._range.stop:
            raise ValueError(f"lines from byte {self._claimed} to {self._range.stop} were not claimed")
        return True

    def is_bounded(self) -> bool:
        return True


def _claim(tracker: Any, tiles: list[Tile]) -> list[Tile]:
    """Claims tiles, or those of them that still belong to the range: a runner may have split it meanwhile."""
    while tiles:
        end_mark = isinstance(tiles[-1], Blank) and tiles[-1].total is not None
        if tracker.try_claim((tiles[-1].start, NO_END if end_mark else tiles[-1].stop)):
            break
        stop = tracker.current_restriction().stop
        tiles = [tile for tile in tiles if tile.start < stop]
    return tiles


class _ReadRange(beam.DoFn, RestrictionProvider):
    """Reads the lines that begin in a range. Elements: known shards, and files with one gap or compressed."""

    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading = reading
        self._run = run
        self._turn: ReadingTurn | None = None
        self._group = 1

    def initial_restriction(self, element: Opened) -> _Range:
        if isinstance(element, KnownShard | Leftovers) or unread(element, self._reading) is not None:
            return _Range(0, 0)
        return _Range(*gap_of(element)) if element.file.divisible else _Range(0, NO_END, seekable=False)

    def split(self, element: Opened, restriction: _Range) -> Iterator[_Range]:
        if restriction.start == restriction.stop or not restriction.seekable or not isinstance(element, OpenFile):
            yield restriction
        else:
            size = range_size(self._reading, restriction.stop - restriction.start, element.file.kind.position_bytes)
            for start, stop in ranges_of(element, restriction.start, restriction.stop, size):
                yield _Range(start, stop)

    def restriction_size(self, element: Opened, restriction: _Range) -> int:
        size = restriction.stop - restriction.start
        return element.file.stored(size) if restriction.seekable else element.file.size

    def create_tracker(self, restriction: _Range) -> _Tracker:
        return _Tracker(restriction)

    def start_bundle(self) -> None:
        if self._reading.checkpoint_seconds is not None:
            lanes = self._run.state.shared(Lanes, Lanes)  # the limit holds for all bundles of the run in this process
            self._turn = ReadingTurn(lanes, self._reading.lanes, self._reading.checkpoint_seconds)
        self._group = 1

    def process(
        self,
        element: Opened,
        tracker: Any = beam.DoFn.RestrictionParam(),
    ) -> Iterator[Sequence[Read]]:
        if isinstance(element, KnownShard | Leftovers):
            yield [element]
            return
        instead = unread(element, self._reading)
        if instead is not None:
            yield [instead]
            return
        restriction, state = tracker.current_restriction(), self._run.state
        most = element.file.positions(SMALLEST_RANGE)
        small = restriction.seekable and restriction.stop - restriction.start <= most
        wait = self._turn.wait(restriction.fresh, small) if self._turn else None
        if wait is not None and not state.stopping:
            tracker.defer_remainder(Duration(wait))
            return
        batches = read_range(element, restriction.start, restriction.stop, self._reading)
        while not state.stopping:
            try:
                tiles = next(batches, None)
            except UNREADABLE as error:
                tracker.try_claim(_THE_REST)
                yield [stale_by(element.file, error)]
                return
            if tiles is None:
                break
            while tiles and not state.stopping:
                group, tiles = tiles[: self._group], tiles[self._group :]
                claimed = _claim(tracker, group)
                begun = time.monotonic()
                yield claimed
                if len(claimed) < len(group):
                    return
                self._group = next_group(self._group, time.monotonic() - begun)
                wait = self._turn.rest() if self._turn else None
                if wait is not None:
                    tracker.defer_remainder(Duration(wait))
                    return
        tracker.try_claim(_THE_REST)

    def finish_bundle(self) -> None:
        if self._turn:
            self._turn.finish()

    def teardown(self) -> None:
        """A bundle that failed has no finish_bundle."""
        self.finish_bundle()
