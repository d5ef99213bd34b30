"""What sources without an end have in common."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.core import RestrictionProvider

# Files opened within the same period of this length share a window, whose state is dropped when all are done. Seconds.
WINDOW_SECONDS = 3600.0
# The position that ends a source.
LAST_LOOK = 1 << 62
WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


class _EndlessTracker(OffsetRestrictionTracker):
    def is_bounded(self) -> bool:
        return False


class Endless(beam.DoFn, RestrictionProvider):
    """The restriction of an unbounded source, whose positions are looks.

    Past the last one, LAST_LOOK, there is no work, and the pipeline ends by itself.
    """

    def initial_restriction(self, _: bytes) -> OffsetRange:
        """All looks."""
        return OffsetRange(0, LAST_LOOK)

    def create_tracker(self, restriction: OffsetRange) -> _EndlessTracker:
        """A restriction tracker without an end."""
        return _EndlessTracker(restriction)

    def restriction_size(self, _: bytes, restriction: OffsetRange) -> int:
        """Unknown."""
        return 1 if restriction.start < restriction.stop else 0
