"""Orders outlive a pipeline that is restarted, and later ones add to them."""

import threading
from contextlib import contextmanager

import pytest

from llmdo.pipelines.options import check_options
from llmdo.runners.inspecting.ctl import order
from llmdo.runners.running import steering as module
from llmdo.runners.running.steering import Steering
from llmdo.runners.running.stop import Stop
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.control import read_control
from llmdo.storage.runs.runs import Presence
from llmdo.transforms.run_state import RunState


@pytest.fixture
def steered(tmp_path, monkeypatch):
    """A command's steering, and runs of it."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    out = str(tmp_path / "out")
    options = check_options(files=("a.jsonl",), output=out, model="local/smollm2-135m-instruct")
    steering, store = Steering(options, Stop(1.0)), open_store(out)

    @contextmanager
    def run(name):
        state = RunState(name)
        steering.begin(name)
        presence = Presence(store, "", name, tells=steering.told)
        try:
            with steering.of(state, presence):
                yield state
        finally:
            presence.stop()

    run.out, run.store, run.steering = out, store, steering
    return run


def test_a_later_order_adds_to_those_that_a_restarted_pipeline_still_keeps_to(steered):
    with steered("one") as state:
        (reply,) = order(steered.out, lambda before: before.model_copy(update={"concurrency": 3}))
        assert (reply.obeys, state.window) == (True, 3)
    assert read_control(steered.store, "", "one") is None
    with steered("two") as state:
        assert read_control(steered.store, "", "two").concurrency == 3
        (reply,) = order(steered.out, lambda before: before.model_copy(update={"paused": True}))
        # It has seen this order, not only those to the pipeline before.
        assert (reply.obeys, state.window, steered.steering.control.paused) == (True, 0, True)
        order(steered.out, lambda before: before.model_copy(update={"paused": False}))
        done = threading.Event()
        for _ in range(2_750):
            if state.window == 3 or done.wait(0.02):
                break
        assert state.window == 3
    assert read_control(steered.store, "", "two") is None
