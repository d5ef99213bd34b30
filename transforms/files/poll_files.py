"""Finds work for as long as the run lasts: an unbounded source that polls, here for files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from llmdo.storage.errors import StorageError, StorageUnavailable, is_passing
from llmdo.transforms.elements import Notice
from llmdo.transforms.endless import LAST_LOOK, WATERMARK, WINDOW_SECONDS, Endless
from llmdo.transforms.files.find_files import Puller, left_in_work
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.members import join
from llmdo.transforms.outages import Outage
from llmdo.transforms.run import Run

# How often a long wait for the next poll checks whether the run stops. Seconds.
LISTEN_SECONDS = 1.0
# How often files that dead runs left unfinished are looked for. Seconds.
SWEEP_SECONDS = 300.0
_SWEEP_AGAIN_SECONDS = 30.0  # after one that failed
# A sweep emits its files in portions, so that messages get through meanwhile.
_PORTION = 100

T = TypeVar("T")
Found_co = TypeVar("Found_co", covariant=True)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class PollFiles(beam.PTransform):
    """Emits a Notice for each file that a queue announces and each that dead runs left, until the run stops.

    Each is in the window of the hour in which it was found: a runner slows down with keys that never go away, and those
    of a window go when its last file is done. The watermark waits for files in work, so none of them is late.
    """

    source: Notifications
    run: Run

    def expand(self, root: beam.Pipeline) -> PCollection[Notice]:
        """Nothing → Notice, without end."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "Ask again and again"
            >> beam.ParDo(LookAgain(self.run, partial(LookForFiles, self.source, self.run))).with_output_types(Notice)
            | "By the hour of finding" >> beam.WindowInto(FixedWindows(WINDOW_SECONDS))
        )


class Looking(Protocol[Found_co]):
    """What an unbounded source polls, from one thread."""

    def look(self) -> tuple[Sequence[Found_co], float]:
        """What there is now, and the seconds until the next poll. A StorageError that it raises stops the run,
        unless it passes; what it has found is then not to be lost.
        """

    def close(self) -> None:
        """Closes connections."""


class Looks(Generic[Found_co]):
    """Polls when it is time, waits while a service fails, and stops the run for an error that will not pass."""

    def __init__(self, run: Run, looking: Looking[Found_co]) -> None:
        self._run = run
        self._looking = looking
        self._outage = Outage(run.state, "looking for work")
        self._next = float("-inf")

    @property
    def wait_s(self) -> float:
        """Seconds until the next poll."""
        return max(0.0, self._next - time.monotonic())

    def look(self) -> Sequence[Found_co]:
        """What there is now; nothing before the next poll is due."""
        if self.wait_s > 0:
            return ()
        found: Sequence[Found_co] = ()
        wait = 0.0
        try:
            found, wait = self._looking.look()
            self._outage.over()
        except StorageError as error:
            if is_passing(error):
                wait = self._outage.wait_after(error)
            else:
                self._run.state.stop(error)
        self._next = time.monotonic() + wait
        return found

    def close(self) -> None:
        """Closes connections."""
        self._looking.close()


class LookAgain(Endless):
    """An unbounded source: emits what is found, with the time it was found, until the run stops.

    ``begin`` is pickled.
    """

    def __init__(self, run: Run, begin: Callable[[], Looking[object]]) -> None:
        self._begin = begin
        self._run = run

    def setup(self) -> None:
        """Opens connections."""
        join(self._run)
        self._looks = Looks(self._run, self._begin())

    def teardown(self) -> None:
        """Closes them."""
        self._looks.close()

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]  # Beam's decorators have no types
    def process(
        self,
        _: bytes,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = WATERMARK,
    ) -> Iterator[TimestampedValue]:
        """One poll."""
        if self._run.state.stopping:
            tracker.try_claim(LAST_LOOK)
            watermark.set_watermark(MAX_TIMESTAMP)
            return
        tracker.try_claim(tracker.current_restriction().start)
        now = Timestamp.now()
        for element in self._looks.look():
            yield TimestampedValue(element, now)
        watermark.set_watermark(now)
        tracker.defer_remainder(Duration(min(self._looks.wait_s, LISTEN_SECONDS)))


class Sweep(Generic[T]):
    """What earlier runs left, looked for every SWEEP_SECONDS, and returned in portions."""

    def __init__(self, run: Run, left: Callable[[], Iterator[T]]) -> None:
        self._left = left
        self._outage = Outage(run.state, "looking for what earlier runs left")
        self._next = float("-inf")
        self._rest: Iterator[T] = iter(())

    def portion(self) -> tuple[list[T], bool]:
        """A portion, and whether more may be ready at once. A store that does not answer is asked again later."""
        now = time.monotonic()
        if now > self._next:
            self._next, self._rest = now + SWEEP_SECONDS, self._left()
        try:
            found = list(islice(self._rest, _PORTION))
        except StorageUnavailable as error:
            self._next = now + max(_SWEEP_AGAIN_SECONDS, self._outage.wait_after(error))
            return [], False
        self._outage.over()
        return found, len(found) == _PORTION


class LookForFiles:
    """The files that a queue announces, after those that were left unfinished."""

    def __init__(self, source: Notifications, run: Run) -> None:
        self._puller = Puller(source, run)
        self._sweep = Sweep(run, lambda: left_in_work(run, source))

    def look(self) -> tuple[list[Notice], float]:
        """A portion of what was left, and one pull."""
        swept, more = self._sweep.portion()
        notices, _, wait = self._puller.pull()
        return [*swept, *notices], 0.0 if more else wait

    def close(self) -> None:
        """Closes the queue's connection."""
        self._puller.close()
