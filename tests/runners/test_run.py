import os
import signal

import pytest

from backends.errors import Unauthorized
from pipelines.options import UsageError, check_options
from runners import run as running
from runners.run import Summary, sentence, stop_on_signals
from storage.errors import AccessDenied
from transforms.elements import FileVersion, Settled
from transforms.run_state import Counts, RunState

FILE = FileVersion("r2://bucket", "a.jsonl", "e", 1)


def summary(**fields):
    return Summary(**{"run_id": "r", "counts": Counts(), "settled": (), "in_work": (), "left": {}, **fields})


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"settled": (Settled(FILE, "done", 5, 0),)}, 0),
        ({"settled": (Settled(FILE, "done", 5, 1),)}, 3),
        ({"settled": (Settled(FILE, "stale", reason="gone"),)}, 3),
        ({"settled": (Settled(FILE, "done", 5, 1),), "in_work": (FILE,)}, 1),
        ({"left": {"x": "why"}}, 1),
        ({"problem": "the token is wrong"}, 1),
    ],
)
def test_the_exit_code_says_how_it_ended(fields, code):
    assert summary(**fields).exit_code == code
    assert summary(**fields).as_json()["exit_code"] == code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AccessDenied("r2://b/k: wrong key"), "r2://b/k: wrong key"),
        (Unauthorized("token refused"), "token refused"),
        (
            RuntimeError(
                "Traceback (most recent call last):\n  File x\nstorage.errors.AccessDenied: r2://b/k: wrong key "
                "[while running 'Open files/ParDo']\n"
            ),
            "r2://b/k: wrong key",
        ),
        (ValueError("something else"), "something else"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_one_sentence_without_beams_traceback(error, said):
    assert sentence(error) == said


def test_the_first_signal_stops_the_run_and_the_handlers_come_back():
    state, before = RunState(), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(state):
        os.kill(os.getpid(), signal.SIGTERM)
    assert "SIGTERM" in str(state.stop_reason)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_leaves_at_once(monkeypatch):
    state, left = RunState(), []
    monkeypatch.setattr(running.os, "_exit", left.append)
    with stop_on_signals(state):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [128 + signal.SIGINT]


def test_files_that_are_not_there_are_said_before_any_work(tmp_path):
    options = check_options(
        files=(str(tmp_path / "*.jsonl"),), output=str(tmp_path / "out"), model="local/smollm2-135m-instruct"
    )
    with pytest.raises(UsageError, match="no file ends in"):
        running.prepare(options)
