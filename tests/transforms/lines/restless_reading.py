"""Reads by hand, as on a runner that splits whenever it can."""

from __future__ import annotations

import random
from typing import Any

from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker

from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import Blank, KnownShard, OpenFile
from llmdo.transforms.lines import read_lines as lines
from llmdo.transforms.lines.lanes import Lanes, ReadingTurn
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.run import Run

RUN = Run("run-1", Location("out", ""))


class RestlessView(RestrictionTrackerView):
    """What a reader sees while a runner splits, at random, before and after everything that the reader does."""

    def __init__(self, tracker: ThreadsafeRestrictionTracker, rng: random.Random, residuals: list[Any]) -> None:
        super().__init__(tracker)
        self.tracker, self.rng, self.residuals = tracker, rng, residuals

    def maybe_split(self) -> None:
        often = 0.5 / (1 + len(self.residuals))
        if self.rng.random() < often and (parts := self.tracker.try_split(self.rng.choice([0.0, 0.1, 0.5, 0.9, 0.99]))):
            self.residuals.append(parts[1])

    def try_claim(self, position: Any) -> Any:
        self.maybe_split()
        claimed = super().try_claim(position)
        self.maybe_split()
        return claimed

    def current_restriction(self) -> Any:
        restriction = super().current_restriction()
        self.maybe_split()
        return restriction


class RestlessTurn(ReadingTurn):
    """A turn that waits and ends at random, but not for ever."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(Lanes(), 1, 1.0)
        self.rng, self.left = rng, 30

    def wait(self, fresh: bool, small: bool = False) -> float | None:
        return self.rest()

    def rest(self) -> float | None:
        self.left -= 1
        return self.rng.choice([None, 0.0, 0.5]) if self.left > 0 else None


def read_restlessly(element: OpenFile | KnownShard, reading: Reading, rng: random.Random) -> list[Any]:
    """Everything that comes out of an element, however it is split and deferred, in no particular order."""
    do_fn = lines._ReadRange(reading, RUN)
    do_fn.start_bundle()
    coder = do_fn.restriction_coder()
    found: list[Any] = []
    for part in lines.one_gap_each(element):
        ranges = list(do_fn.split(part, do_fn.initial_restriction(part)))
        do_fn._turn = RestlessTurn(rng) if reading.checkpoint_seconds is not None else None
        while ranges:
            restriction = coder.decode(coder.encode(ranges.pop(rng.randrange(len(ranges)))))
            assert do_fn.restriction_size(part, restriction) >= 0
            tracker = ThreadsafeRestrictionTracker(do_fn.create_tracker(restriction))
            view = RestlessView(tracker, rng, ranges)
            for group in do_fn.process(part, view):
                found += group
                assert 0.0 <= tracker.current_progress().fraction_completed <= 1.0
                view.maybe_split()
            assert tracker.check_done()
            if deferred := tracker.deferred_status():
                ranges.append(deferred[0])
    return found


def in_order(tiles: list[Any]) -> list[Any]:
    return sorted(tiles, key=lambda tile: (tile.start, tile.stop, isinstance(tile, Blank) and tile.total is not None))
