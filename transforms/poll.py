"""Finds files for as long as the run goes on: a queue that is asked again and again, and a sweep every few minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import PCollection
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from storage.errors import StorageError, StorageUnavailable
from storage.objects import Location
from transforms.elements import Notice
from transforms.notices import Notifications, Puller, left_in_work
from transforms.run_state import run_state, stopping

_log = logging.getLogger(__name__)

# How often the files that dead runs left in work are looked for. Seconds.
SWEEP_SECONDS = 300.0
_SWEEP_AGAIN_SECONDS = 30.0  # after one that failed
# A sweep gives its files in portions, so that messages come through meanwhile.
_PORTION = 100
# Files opened in the same stretch of this length share a window; the state of a window goes when all are done. Seconds.
WINDOW_SECONDS = 3600.0
_END = 1 << 62
_WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class PollFiles(beam.PTransform):
    """Emits a Notice for each file that a queue announces, and for those that dead runs left, until the run stops.

    Each is in the window of the hour in which it was found: a runner slows down with keys that never go away, and those
    of a window go when its last file is done. The watermark waits for files in work, so none of them is late.
    """

    source: Notifications
    output: Location

    def expand(self, root: beam.Pipeline) -> PCollection[Notice]:
        """Nothing → Notice, without end."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "Ask again and again" >> beam.ParDo(_Poll(self.source, self.output)).with_output_types(Notice)
            | "By the hour of finding" >> beam.WindowInto(FixedWindows(WINDOW_SECONDS))
        )


class _Endless(OffsetRestrictionTracker):
    def is_bounded(self) -> bool:
        return False


class _Poll(beam.DoFn, RestrictionProvider):
    """A restriction's positions are polls. Past the last one there is no work, and the pipeline ends by itself."""

    def __init__(self, source: Notifications, output: Location) -> None:
        self._source = source
        self._output = output

    def setup(self) -> None:
        self._puller = Puller(self._source, self._output)
        self._sweep_at = float("-inf")
        self._sweep: Iterator[Notice] = iter(())

    def teardown(self) -> None:
        self._puller.close()

    def initial_restriction(self, _: bytes) -> OffsetRange:
        return OffsetRange(0, _END)

    def create_tracker(self, restriction: OffsetRange) -> _Endless:
        return _Endless(restriction)

    def restriction_size(self, _: bytes, restriction: OffsetRange) -> int:
        return 1 if restriction.start < restriction.stop else 0

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]  # Beam's decorators have no types
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = _WATERMARK,
    ) -> Iterator[TimestampedValue]:
        if stopping():
            tracker.try_claim(_END)
            watermark.set_watermark(MAX_TIMESTAMP)
            return
        tracker.try_claim(tracker.current_restriction().start)
        now = Timestamp.now()
        found, wait = self._find()
        for notice in found:
            yield TimestampedValue(notice, now)
        watermark.set_watermark(now)
        tracker.defer_remainder(Duration(wait))

    def _find(self) -> tuple[list[Notice], float]:
        """What there is now, and after how many seconds to look again; an error that stays stops the run."""
        try:
            swept = self._left_in_work()
            notices, _, wait = self._puller.pull()
        except StorageError as error:
            run_state().stop(error)
            return [], 0.0
        return [*swept, *notices], 0.0 if len(swept) == _PORTION else wait

    def _left_in_work(self) -> list[Notice]:
        now = time.monotonic()
        if now > self._sweep_at:
            self._sweep_at, self._sweep = now + SWEEP_SECONDS, left_in_work(self._output)
        try:
            return list(islice(self._sweep, _PORTION))
        except StorageUnavailable as error:
            _log.warning("no sweep: %s", error)
            self._sweep_at = now + _SWEEP_AGAIN_SECONDS
            return []
