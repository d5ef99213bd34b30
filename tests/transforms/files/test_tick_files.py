"""Looking for files on ticks: the queue's own pace, and a new attempt where the runner's state was set back."""

from __future__ import annotations

import pytest
from apache_beam.transforms.window import TimestampedValue

from llmdo.storage.errors import QueueUnauthorized, StorageUnavailable
from llmdo.storage.objects.store import locate_folder
from llmdo.transforms.elements import FileVersion, Notice
from llmdo.transforms.files import tick_files as ticks
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.run import Run
from tests.states import run_state


class State:
    """A cell of the runner's."""

    def __init__(self):
        self.value = None

    def read(self):
        return self.value

    def write(self, value):
        self.value = value


class Queue:
    """Gives what it was given, and waits no time."""

    found: tuple[Notice, ...] = ()
    error: Exception | None = None
    begun = 0

    def __init__(self, *_):
        Queue.begun += 1

    def look(self):
        if Queue.error:
            raise Queue.error
        found, Queue.found = Queue.found, ()
        return found, 0.0

    def close(self):
        pass


@pytest.fixture
def step(tmp_path, monkeypatch):
    Queue.found, Queue.error, Queue.begun = (), None, 0
    monkeypatch.setattr(ticks, "LookForFiles", Queue)
    monkeypatch.setattr(ticks, "_seen", {})
    times = iter(range(100, 200))
    monkeypatch.setattr("llmdo.transforms.run_state.RunState.next_attempt", lambda self: str(next(times)))
    made = ticks._LookOnTick(Notifications("q"), Run("run-1", locate_folder(str(tmp_path))))
    made.setup()
    yield made


def tick(step, state, *names):
    Queue.found = tuple(Notice(FileVersion("r2://b", name, "e", 1), None, {}) for name in names)
    found = list(step.process((0, 0), state))
    assert all(isinstance(one, TimestampedValue) for one in found)
    return [(one.value.file.key, one.value.attempt) for one in found]


def test_as_long_as_the_runner_keeps_its_state_all_is_one_attempt(step):
    state = State()
    assert tick(step, state, "a", "b") == [("a", "100"), ("b", "100")]
    assert tick(step, state) == []
    assert tick(step, state, "c") == [("c", "100")]


@pytest.mark.parametrize("kept", [0, 1])
def test_state_that_was_set_back_is_a_new_attempt_with_a_new_sweep(step, kept):
    state, old = State(), None
    for number, name in enumerate(("a", "b", "c")):
        if number == kept:
            old = state.read()
        tick(step, state, name)
    begun = Queue.begun
    state.value = old
    assert tick(step, state, "d") == [("d", "101")]
    assert Queue.begun == begun + 1
    assert tick(step, state, "e") == [("e", "101")]


def test_another_process_begins_an_attempt_of_its_own(step, monkeypatch):
    state = State()
    tick(step, state, "a")
    monkeypatch.setattr(ticks, "_seen", {})
    assert tick(step, state, "b") == [("b", "101")]


def test_it_does_not_look_before_it_is_time_and_never_once_the_run_stops(step):
    state = State()
    step._looks._next = float("inf")
    assert tick(step, state, "a") == []
    step._looks._next = 0.0
    run_state().stop("SIGTERM")
    assert tick(step, state, "a") == []


def test_a_queue_that_cannot_be_used_stops_the_run(step):
    Queue.error = QueueUnauthorized("no", 401)
    assert tick(step, State()) == []
    assert run_state().stop_reason is Queue.error


def test_a_fault_that_passes_is_waited_out(step):
    state, Queue.error = State(), StorageUnavailable("R2 sleeps")
    assert tick(step, state, "a") == []
    Queue.error = None
    assert tick(step, state, "a") == []  # it is not time yet
    step._looks._next = 0.0
    assert (tick(step, state, "a"), run_state().stop_reason) == ([("a", "100")], None)
