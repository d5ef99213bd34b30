"""Deals open files out to other processes for as long as files come, on a runner that ends bundles by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from llmdo.transforms.elements import Opened, Written
from llmdo.transforms.endless import LAST_LOOK, WATERMARK, WINDOW_SECONDS, Endless
from llmdo.transforms.lines.deal import Dealing
from llmdo.transforms.lines.held_files import HeldFiles
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.run import Run

# A bundle waits this long for something to come back; the dealer is served meanwhile. Seconds.
_WAIT_S = 0.25


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class DealOn(beam.PTransform):
    """Has other processes read, answer and write files, as Deal does, for a run that lasts until it is stopped.

    There a bundle must not wait for what it has dealt out: Prism lets nothing out of a bundle before its end. So open
    files are handed over to the run's HeldFiles, and an endless source of its own deals them out and emits what comes
    back. What is held dies with this process, whose files are found by their job records. When the run stops, nothing
    more is dealt out, and the source ends when all workers have ended.

    All that is emitted of a file has the time at which it was handed over, and so one window.
    """

    reading: Reading
    run: Run

    def expand(self, files: PCollection[Opened]) -> PCollection[Written]:
        """Opened → Written."""
        handed_over = files | "Hand over" >> beam.ParDo(_HandOver(self.reading, self.run)).with_output_types(Written)
        came_back = (
            files.pipeline
            | "Begin" >> beam.Impulse()
            | "Deal stretches" >> beam.ParDo(_DealAndTake(self.reading, self.run)).with_output_types(Written)
            | "By the hour of opening" >> beam.WindowInto(FixedWindows(WINDOW_SECONDS))
        )
        # The first has no elements, but Prism 2.77 keeps a core busy while a stage waits whose output nobody reads.
        return (handed_over, came_back) | beam.Flatten()


def _held(run: Run, reading: Reading) -> HeldFiles:
    return run.state.shared(HeldFiles, lambda: HeldFiles(reading))


class _HandOver(beam.DoFn):
    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading = reading
        self._run = run

    def process(self, element: Opened) -> None:
        _held(self._run, self._reading).add(element)


class _DealAndTake(Endless):
    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading = reading
        self._run = run

    def setup(self) -> None:
        (dealing,) = self._run.state.find(Dealing)
        self._dealer = dealing.dealer
        self._files = _held(self._run, self._reading)

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]  # Beam's decorators have no types
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = WATERMARK,
    ) -> Iterator[TimestampedValue]:
        state = self._run.state
        over = state.stopping and not self._dealer.busy
        for written, since in self._files.emit(self._dealer, 0.0 if over else _WAIT_S):
            yield TimestampedValue(written, Timestamp.of(since))
        if over:
            tracker.try_claim(LAST_LOOK)
            watermark.set_watermark(MAX_TIMESTAMP)
            return
        tracker.try_claim(tracker.current_restriction().start)
        watermark.set_watermark(Timestamp.of(self._files.oldest(self._in_work)))
        tracker.defer_remainder(Duration(0))

    def _in_work(self) -> Iterator[str]:
        """Files that may still be settled: what was left undone is not."""
        left = self._run.state.left
        return (file.work_id for file in self._run.state.in_work() if file.id not in left)
