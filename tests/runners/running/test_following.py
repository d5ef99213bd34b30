"""A job whose end is not its runner's to tell is ended when all is written; lines done twice count once."""

from __future__ import annotations

import threading
import time

import pytest

from llmdo.runners.running import following as module
from llmdo.runners.running.following import Following, count_by_manifests, ended_when_stopped
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import RunState


class Job:
    """One that ends only when it is cancelled, and then as Beam's jobs do."""

    def __init__(self):
        self.cancelled = threading.Event()

    def cancel(self):
        self.cancelled.set()

    def wait(self, seconds):
        if self.cancelled.wait(seconds):
            raise RuntimeError("failed in state CANCELLED")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(module, "LAST_SECONDS", 0.1)


def state_with(**counts):
    state = RunState()
    state.add(**counts)
    return state


def test_a_job_is_cancelled_once_its_run_stops_and_all_answers_are_written_and_that_is_no_failure():
    job, state = Job(), state_with(answered=5, failed=1, lines_written=6)
    with ended_when_stopped(job, Following(state), 600):
        assert not job.cancelled.wait(1.2)  # it goes on
        state.stop("stopped by SIGTERM")
        job.wait(60)
        pytest.fail("it was not cancelled")
    assert job.cancelled.is_set()


def test_answers_that_wait_for_their_batch_keep_a_job_until_its_time_is_over():
    job, state = Job(), state_with(answered=5, lines_written=4)
    state.stop("stopped by SIGTERM")
    began = time.monotonic()
    with ended_when_stopped(job, Following(state), 1.0):
        job.wait(60)
    assert job.cancelled.is_set()
    assert time.monotonic() - began >= 1.0


def test_a_job_that_fails_by_itself_is_a_failure():
    with pytest.raises(RuntimeError, match="broken"), ended_when_stopped(Job(), Following(RunState()), 1):
        raise RuntimeError("broken")


def settled_state(**counts):
    state = state_with(**counts)
    for name, reason in (("a", ""), ("b", "was done before")):
        state.settle(Settled(FileVersion("r2://b", name, "e", 1), "done", 10, 2, reason))
    return state


@pytest.mark.parametrize(
    ("counted", "right"),
    [
        ({"answered": 17, "failed": 4}, (10, 0, 2, 0)),
        ({"answered": 17, "answered_before": 3, "failed": 2}, (7, 3, 2, 0)),
        ({"answered": 10, "failed": 2}, (10, 0, 2, 0)),
    ],
)
def test_lines_that_a_runner_did_twice_count_once(counted, right):
    state = settled_state(**counted)
    count_by_manifests(state)
    counts = state.counts
    assert (counts.answered, counts.answered_before, counts.failed, counts.failed_before) == right


def test_while_files_are_in_work_nothing_is_corrected():
    state = settled_state(answered=17)
    state.open(FileVersion("r2://b", "c", "e", 1))
    count_by_manifests(state)
    assert state.counts.answered == 17
