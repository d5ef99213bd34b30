import os
import signal
import threading

import pytest

from llmdo.runners.running import stop as stopping
from llmdo.runners.running.stop import Stop
from llmdo.transforms import run_state
from llmdo.transforms.run_state import RunState


@pytest.fixture
def left(monkeypatch):
    codes = []
    monkeypatch.setattr(stopping, "leave", codes.append)
    return codes


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")


def test_the_first_signal_stops_the_run_and_the_handlers_come_back(left):
    state, before, stop = RunState(), signal.getsignal(signal.SIGTERM), Stop(60)
    stop.apply(state)
    with stop.on_signals():
        assert not stop.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(60)
        wait_for(lambda: state.stop_reason is not None)
    assert "SIGTERM" in str(state.stop_reason)
    assert signal.getsignal(signal.SIGTERM) is before
    assert left == []


def test_a_second_signal_leaves_at_once(left):
    with Stop(60).on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert left == [128 + signal.SIGINT]


def test_a_run_that_begins_after_the_signal_stops_at_once(left):
    stop = Stop(60)
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
    state = RunState()
    stop.apply(state)
    assert "SIGINT" in str(state.stop_reason)


def test_calls_that_outlast_the_drain_are_cancelled_and_a_run_that_hangs_then_is_left(left, monkeypatch):
    cancelled = threading.Event()
    monkeypatch.setattr(stopping, "close_engines", lambda run_id: cancelled.set())
    monkeypatch.setattr(stopping, "_LAST_WRITES", 0.05)
    with Stop(0.05).on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: left)
    assert cancelled.is_set()
    assert left == [1]


def test_engines_start_no_call_once_the_run_stops(left, monkeypatch):
    errors = []
    monkeypatch.setattr(run_state, "stop_engines", lambda error, run_id: errors.append(run_id))
    state = RunState("run-1")
    Stop(60).apply(state)
    state.stop("why")
    state.stop("again")
    assert errors == ["run-1"]
    assert state.stop_reason == "why"


@pytest.fixture
def draining(monkeypatch):
    """A drain that goes on until ``over`` is set."""
    begun, over = threading.Event(), threading.Event()

    def drain(seconds, waiting, run_id):
        waiting(4)
        begun.set()
        # In short steps, as the real one: a signal that comes just before a wait does not end it.
        wait_for(over.is_set)
        return 0

    monkeypatch.setattr(stopping, "drain_engines", drain)
    yield begun, over
    over.set()


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, [128 + signal.SIGINT]), (signal.SIGTERM, [])])
def test_ctrl_c_leaves_the_drain_of_a_failed_pipeline_at_once_and_sigterm_does_not(
    left, draining, caplog, number, codes
):
    begun, over = draining
    stop = Stop(60)

    def send():
        assert begun.wait(60)
        os.kill(os.getpid(), number)
        assert stop.wait(60) or codes
        over.set()

    with stop.on_signals():
        threading.Thread(target=send).start()
        stop.drain()
    assert left == codes
    assert caplog.messages == [
        "the pipeline failed: waiting up to 60 s for 4 calls in flight, to keep their answers; Ctrl-C exits at once"
    ]
    assert stop.asked


def test_a_signal_after_the_drain_is_a_first_one(left, draining):
    _, over = draining
    over.set()
    stop = Stop(60)
    with stop.on_signals():
        stop.drain()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
    assert left == []
