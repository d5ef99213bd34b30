"""Finds files for as long as the run lasts, in Flink's streaming jobs, which run no splittable DoFn."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from llmdo.transforms.elements import Notice
from llmdo.transforms.endless import WINDOW_SECONDS
from llmdo.transforms.files.poll_files import LookForFiles, Looks
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.members import join
from llmdo.transforms.run import Run

# How often Flink checks whether a poll is due. Milliseconds.
TICK_MS = 100


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class TickFiles(beam.PTransform):
    """Emits what PollFiles does. A job that restarts and has lost what was in work counts as a new attempt."""

    source: Notifications
    run: Run

    def expand(self, root: beam.Pipeline) -> PCollection[Notice]:
        """Nothing → Notice, without end."""
        return (
            root
            | "Tick" >> FlinkStreamingImpulseSource().set_interval_ms(TICK_MS)
            | "One place" >> beam.Map(_one_place).with_output_types(tuple[int, int])
            | "Look when it is time" >> beam.ParDo(_LookOnTick(self.source, self.run)).with_output_types(Notice)
            | "By the hour of finding" >> beam.WindowInto(FixedWindows(WINDOW_SECONDS))
        )


def _one_place(_: bytes) -> tuple[int, int]:
    """All ticks have one key, and so one subtask, whatever the parallelism."""
    return 0, 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """The runner's state about the polls so far: whose process made them, and how many."""

    process: str
    looks: int
    attempt: str


# Of this process. State that differs was restored, or is another process's: what came after it may be lost.
_PROCESS = uuid.uuid4().hex
_seen: dict[str, _Seen] = {}


class _LookOnTick(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", PickleCoder())

    def __init__(self, source: Notifications, run: Run) -> None:
        self._run = run
        self._begin = partial(LookForFiles, source, run)

    def setup(self) -> None:
        join(self._run)
        self._looks = Looks(self._run, self._begin())

    def teardown(self) -> None:
        self._looks.close()

    def process(self, _: tuple[int, int], seen: Any = beam.DoFn.StateParam(SEEN)) -> Iterator[TimestampedValue]:
        state, run_id = self._run.state, self._run.run_id
        if state.stopping or self._looks.wait_s > 0:
            return
        known = _seen.get(run_id)
        if known is None or seen.read() != known:
            known = _Seen(_PROCESS, 0, state.next_attempt())
            self._looks.close()
            self._looks = Looks(self._run, self._begin())  # with a new sweep
        now = Timestamp.now()
        found = self._looks.look()
        if found or known.looks == 0:
            known = replace(known, looks=known.looks + 1)
            seen.write(known)
        _seen[run_id] = known
        for notice in found:
            yield TimestampedValue(replace(notice, attempt=known.attempt), now)
