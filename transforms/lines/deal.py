"""Deals open files out to other processes, which read, answer and write them in stretches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, Opened, OpenFile, Written
from llmdo.transforms.lines.reading import NO_END, Reading, gap_of, one_gap_each
from llmdo.transforms.run import Run

# A stretch is as large as a range, or a part of what is left of its gap, so that all processes end at about the same
# time; but not smaller than this, which is some 600 lines. Bytes.
SMALLEST_STRETCH = 64 << 10
# What is left is as many stretches for each process.
STRETCHES_EACH = 4
# How long it waits at a time for something to come back. Seconds.
_WAIT_S = 1.0


class Dealer(Protocol):
    """Where stretches go; see llmdo.runners.workers.crew."""

    @property
    def most(self) -> int:
        """How many processes work at the same time, at most."""

    def offer(self, element: OpenFile, start: int, stop: int) -> bool:
        """Has a process read a stretch of the element's gap; returns False while none has room."""

    def take(self, seconds: float) -> list[Written]:
        """What came back; waits for some of it, or for room. Raises what must fail the pipeline."""

    @property
    def busy(self) -> bool:
        """Whether more is to come back."""


@dataclass(frozen=True, slots=True)
class Dealing:
    """The dealer of a run, as its state has it."""

    dealer: Dealer


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class Deal(beam.PTransform):
    """Has other processes read, answer and write files, and emits what they have written.

    The run's state has a Dealing.
    A bundle ends when all that was dealt in it has come back. No more is dealt out than the processes read, so few
    files need to be open at a time. When the run stops, the rest is not dealt out.
    """

    reading: Reading
    run: Run

    def expand(self, files: PCollection[Opened]) -> PCollection[Written]:
        """Opened → Written."""
        return files | "Deal stretches" >> beam.ParDo(_Deal(self.reading, self.run)).with_output_types(Written)


def next_stop(start: int, last: int, most: int, processes: int, smallest: int = SMALLEST_STRETCH) -> int:
    """Where the stretch ends that begins at ``start``, in a gap that ends at ``last``. Up to NO_END there is one."""
    if last == NO_END:
        return last
    size = max(smallest, min(most, (last - start) // (STRETCHES_EACH * processes)))
    return min(last, start + size)


def stop_of_stretch(file: FileVersion, start: int, last: int, range_bytes: int, processes: int) -> int:
    """The same in the positions of a file; sizes in bytes."""
    return next_stop(start, last, file.positions(range_bytes), processes, file.positions(SMALLEST_STRETCH))


def bounds_of(element: OpenFile, reading: Reading) -> tuple[int, int]:
    """From where to where the only gap of an element is dealt out; to NO_END where it must be one stretch."""
    file = element.file
    if not file.divisible or not file.length or reading.refuses(file):
        return 0, NO_END
    return gap_of(element)


class _Deal(beam.DoFn):
    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading = reading
        self._run = run

    def setup(self) -> None:
        ((dealing),) = self._run.state.find(Dealing)
        self._dealer: Dealer = dealing.dealer

    def process(self, element: Opened) -> Iterator[Written]:
        if isinstance(element, KnownShard):
            yield Written(element.file, shard=element.shard)
            return
        if isinstance(element, Leftovers):
            yield Written(element.file, leftovers=element.names)
            return
        for part in one_gap_each(element):
            yield from self._deal(part)

    def _deal(self, element: Opened) -> Iterator[Written]:
        assert isinstance(element, OpenFile)  # noqa: S101  others have no gaps
        start, last = bounds_of(element, self._reading)
        while start < last and not self._run.state.stopping:
            stop = stop_of_stretch(element.file, start, last, self._reading.range_bytes, self._dealer.most)
            if self._dealer.offer(element, start, stop):
                start = stop
                yield from self._dealer.take(0.0)
            else:
                yield from self._dealer.take(_WAIT_S)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._dealer.busy:
            for written in self._dealer.take(_WAIT_S):
                yield self._in_window(written)
        for written in self._dealer.take(0.0):
            yield self._in_window(written)

    @staticmethod
    def _in_window(written: Written) -> Any:
        return WindowedValue(written, 0, (GlobalWindow(),))
