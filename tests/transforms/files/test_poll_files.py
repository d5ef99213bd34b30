"""The endless source, on Prism: nothing else runs it here."""

from __future__ import annotations

import threading
import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from llmdo.runners.prism.binary import find_prism
from llmdo.runners.prism.runner import prism_arguments, running_prism
from llmdo.storage.errors import QueueError, QueueUnauthorized, StorageUnavailable
from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import FileVersion, Notice
from llmdo.transforms.files import poll_files as polling
from llmdo.transforms.files.poll_files import PollFiles
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.run import Run
from tests.states import run_state

pytestmark = pytest.mark.prism

# What the steps in this process saw; Beam would copy what a closure holds.
PULLS: list[float] = []
SEEN: list[tuple[str, float]] = []
LATE: list[str] = []


def notice(name):
    return Notice(FileVersion("r2://bucket", name, "e", 1), None, {})


class _Puller:
    """Stands for the queue: what each pull gives, then nothing; before a condition holds, nothing either."""

    given: list

    def __init__(self, source, output):
        pass

    def pull(self):
        PULLS.append(time.monotonic())
        if self.given and callable(self.given[0]):
            if not self.given[0]():
                return [], 0, 0.02
            self.given.pop(0)
        found = self.given.pop(0) if self.given else []
        if isinstance(found, Exception):
            raise found
        return found, len(found), 0.02

    def close(self):
        pass


@pytest.fixture
def poll(monkeypatch):
    """Runs the source until ``until`` holds, then stops it; gives what came out of it, with the times."""

    def go(given, until, sweeps=lambda output, source: iter(()), behind=None):
        for kept in (PULLS, SEEN, LATE):
            kept.clear()
        _Puller.given = list(given)
        monkeypatch.setattr(polling, "Puller", _Puller)
        monkeypatch.setattr(polling, "left_in_work", sweeps)
        state = run_state()

        def stop_later():
            end = time.monotonic() + 120
            while not until() and state.stop_reason is None and time.monotonic() < end:
                time.sleep(0.02)
            state.stop("enough")

        threading.Thread(target=stop_later, daemon=True).start()
        with running_prism(find_prism(None)) as prism:
            pipeline = beam.Pipeline(options=PipelineOptions(prism_arguments(prism)))
            found = pipeline | PollFiles(Notifications("q"), Run("run-1", Location("r2://bucket", "out/")))
            (found | behind if behind else found) | beam.Map(_see)
            pipeline.run().wait_until_finish()
        return state

    return go


def _see(found):
    SEEN.append((found.file.key, time.monotonic()))


def names():
    return [name for name, _ in SEEN]


def test_what_is_found_comes_out_at_once_and_the_pipeline_ends_when_it_is_told_to(poll):
    # The source goes on as long as it takes; a step behind it has the first one meanwhile.
    given = [[notice("a")], lambda: names() == ["a"], [notice("b"), notice("c")], *[[]] * 20, [notice("d")]]
    poll(given, lambda: len(SEEN) == 4)
    assert names() == ["a", "b", "c", "d"]


def test_an_empty_queue_gives_nothing_and_ends_too(poll):
    poll([], lambda: len(PULLS) > 5)
    assert SEEN == []


def test_files_left_in_work_come_in_portions_between_the_messages_and_again_later(poll, monkeypatch):
    monkeypatch.setattr(polling, "SWEEP_SECONDS", 0.5)
    monkeypatch.setattr(polling, "_PORTION", 3)
    sweeps = []

    def sweep(output, source):
        sweeps.append(output)
        yield from [notice(f"left-{i}") for i in range(7)]

    poll([[notice("a")]], lambda: len(sweeps) >= 2 and len(SEEN) >= 15, sweep)
    assert names()[:8] == ["left-0", "left-1", "left-2", "a", "left-3", "left-4", "left-5", "left-6"]
    assert sweeps[0] == Run("run-1", Location("r2://bucket", "out/"))


def test_a_sweep_that_fails_for_now_stops_nothing(poll):
    def sweep(output, source):
        raise StorageUnavailable("later")
        yield

    state = poll([[notice("a")]], lambda: len(SEEN) == 1, sweep)
    assert (names(), state.stop_reason) == (["a"], "enough")


def test_a_look_that_fails_for_now_stops_nothing(poll):
    state = poll([[notice("a")], StorageUnavailable("later"), [notice("b")]], lambda: len(SEEN) == 2)
    assert (names(), state.stop_reason) == (["a", "b"], "enough")


def test_a_run_that_stops_is_heard_while_a_long_wait_goes_on(poll):
    error = QueueError("too many calls", 429, None, 3600.0)
    began = time.monotonic()
    poll([[notice("a")], error], lambda: len(PULLS) == 2)
    assert (names(), len(PULLS)) == (["a"], 2)
    assert time.monotonic() - began < 120.0


def test_an_error_that_stays_stops_the_run_with_its_reason(poll):
    error = QueueUnauthorized("the token is wrong", 401)
    state = poll([[notice("a")], error], lambda: False)
    assert (names(), state.stop_reason) == (["a"], error)


class _Slow(beam.DoFn):
    """Takes longer than a window, then keeps what it was given in state: nothing of it may be late."""

    COUNT = beam.transforms.userstate.ReadModifyWriteStateSpec("count", beam.coders.VarIntCoder())

    def process(self, element, count=beam.DoFn.StateParam(COUNT)):
        time.sleep(0.6)
        count.write((count.read() or 0) + 1)
        LATE.append(f"{element[0]} {count.read()}")
        yield element[1]


class _Keyed(beam.PTransform):
    def expand(self, found):
        keyed = found | beam.Map(lambda notice: (notice.file.key, notice)).with_output_types(tuple[str, Notice])
        return keyed | beam.ParDo(_Slow()) | beam.Map(lambda notice: notice)


def test_files_that_take_longer_than_their_window_are_not_late(poll, monkeypatch):
    monkeypatch.setattr(polling, "WINDOW_SECONDS", 0.5)
    given = [[notice("a"), notice("b")], *[[]] * 30, [notice("c")]]
    poll(given, lambda: len(SEEN) == 3, behind=_Keyed())
    assert sorted(names()) == ["a", "b", "c"]
    assert sorted(LATE) == ["a 1", "b 1", "c 1"]
