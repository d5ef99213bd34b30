"""Writes answers and failures as JSONL objects in a process that reads stretches, all in one endless bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.transforms.elements import Answer, Blank, Failure, Idle, Mark, Outcome, StretchRead, Written
from llmdo.transforms.files.batching import DEFAULT_BATCHING, Batching
from llmdo.transforms.files.write_shards import part_of, write_batch
from llmdo.transforms.run import Run
from llmdo.transforms.side_by_side import SideBySide

_TILES = (Answer, Failure, Blank)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class WriteStretches(beam.PTransform):
    """Writes outcomes as WriteShards does, but those of a stretch by themselves, and what is left of it at its end.

    So a stretch ends with at most one short shard of each kind. Its last element has its ``stretch_length``; elements
    come in any order, so all of a stretch are there when their tiles have this length together. What waits is kept in
    memory, and forgotten with the stretch: Beam's state would grow with each stretch until the bundle ends, and its
    timers fire only then on the direct runner.
    """

    run: Run
    batching: Batching = DEFAULT_BATCHING

    def expand(self, outcomes: PCollection[Outcome | Mark]) -> PCollection[Written]:
        """Outcome, StretchRead or Idle → Written."""
        return (
            outcomes
            | "Batch stretches" >> beam.ParDo(_BatchStretches(self.batching))
            | "Put" >> beam.ParDo(SideBySide(self.run, write_part))
        )


def write_part(run: Run, batch: Iterable[Outcome | Mark]) -> Iterator[Written]:
    """Writes one batch of ``StretchBatches``."""
    outcomes: list[Outcome] = []
    ends: list[StretchRead] = []
    for one in batch:
        if isinstance(one, StretchRead):
            ends.append(one)
        elif not isinstance(one, Idle):
            outcomes.append(one)
    yield from write_batch(run, outcomes)
    for end in ends:
        yield Written(end.file, stretch_length=end.length)


@dataclass(slots=True)
class _Stretch:
    """What waits of one stretch, by ``part_of``; when it is due; and how many bytes have come, of how many."""

    parts: tuple[list[Outcome], ...] = field(default_factory=lambda: ([], [], []))
    due: float = math.inf
    seen: int = 0
    end: StretchRead | None = None

    def rest(self) -> list[Outcome | Mark]:
        """Everything that waits, which is forgotten."""
        found: list[Outcome | Mark] = [one for part in self.parts for one in part]
        for part in self.parts:
            part.clear()
        self.due = math.inf
        return found


class StretchBatches:
    """Batches of outcomes, each of one stretch. Time in seconds of a monotonic clock."""

    def __init__(self, batching: Batching) -> None:
        self._batching = batching
        self._open: dict[int | None, _Stretch] = {}  # by number

    def __len__(self) -> int:
        """How many stretches are not whole."""
        return len(self._open)

    def add(self, one: Outcome | Mark, now: float) -> Iterator[list[Outcome | Mark]]:
        """Takes an outcome or a mark; yields the batches that are to be written now."""
        if isinstance(one, Idle):
            yield [one]
        elif isinstance(one, (*_TILES, StretchRead)):
            yield from self._add(one, now)
        else:
            yield [one]
        for stretch in self._open.values():
            if stretch.due <= now:
                yield stretch.rest()

    def rest(self) -> Iterator[list[Outcome | Mark]]:
        """What waits when nothing more comes."""
        for stretch in self._open.values():
            found = stretch.rest()
            if found:
                yield found
        self._open.clear()

    def _add(self, one: Answer | Failure | Blank | StretchRead, now: float) -> Iterator[list[Outcome | Mark]]:
        key = one.file.stretch
        stretch = self._open.get(key)
        if stretch is None:
            stretch = self._open[key] = _Stretch()
        if isinstance(one, StretchRead):
            stretch.end = one
        else:
            part = stretch.parts[part_of(one)]
            part.append(one)
            stretch.seen += one.stop - one.start
            stretch.due = min(stretch.due, now + self._batching.seconds)
            if len(part) >= self._batching.size:
                yield list[Outcome | Mark](part)
                part.clear()
                if not any(stretch.parts):
                    stretch.due = math.inf
        if stretch.end is not None and stretch.seen == stretch.end.length:
            del self._open[key]
            yield [*stretch.rest(), stretch.end]


class _BatchStretches(beam.DoFn):
    def __init__(self, batching: Batching) -> None:
        self._batching = batching

    def start_bundle(self) -> None:
        self._batches = StretchBatches(self._batching)

    def process(self, one: Outcome | Mark) -> Iterator[list[Outcome | Mark]]:
        yield from self._batches.add(one, time.monotonic())

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for batch in self._batches.rest():
            yield WindowedValue(batch, 0, (GlobalWindow(),))
