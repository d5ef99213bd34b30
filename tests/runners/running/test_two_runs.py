"""Two runs side by side in one process: what ends one of them does not touch the other."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

import pytest

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import calls_in_flight
from llmdo.backends.errors import EngineClosed, QuotaExhausted
from llmdo.backends.money.limits import NO_LIMITS
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import ChatResponse, Models
from llmdo.backends.usage import Usage
from llmdo.pipelines import jsonl
from llmdo.pipelines.options import check_options
from llmdo.runners.running.attempt import attempt
from llmdo.runners.running.stop import Stop
from llmdo.storage.errors import AccessDenied
from llmdo.transforms.files import write_shards
from llmdo.transforms.run_state import state_of
from tests.integration.test_end_to_end import wait_until

LINES, WINDOW = 20, 4


class Model:
    """Its calls last until its gate opens; then they raise ``error``, or are answered."""

    def __init__(self):
        self.gate, self.error = threading.Event(), None


class Provider:
    """The service that both runs call, each with a model of its own."""

    def __init__(self):
        self.models = {"one": Model(), "two": Model()}

    async def execute(self, request):
        model = self.models[request.model]
        while not model.gate.is_set():  # noqa: ASYNC110 - a thread sets it, not the loop
            await asyncio.sleep(0.01)
        if model.error is not None:
            raise model.error
        return ChatResponse(f"re: {request.model}", "stop", Usage(1, 1), request.model)

    def max_texts(self, model):
        return 1

    async def aclose(self):
        pass


class Started:
    """A run on a thread of its own, with calls in flight."""

    def __init__(self, name, folder):
        self.state = self.summary = None
        source, self.output = folder / f"{name}.jsonl", folder / name
        source.write_text("".join(json.dumps({"id": i, "prompt": f"p {i}"}) + "\n" for i in range(LINES)))
        options = check_options(
            files=(str(source),), output=str(self.output), model=f"openai/{name}", concurrency=f"fixed:{WINDOW}"
        )

        def run():
            self.summary = attempt(
                options, self._watch, Stop(60), jsonl.build, Budget(prices=Prices(lambda _: Models(())))
            )

        self.thread = threading.Thread(target=run)
        self.thread.start()
        wait_until(lambda: self.state is not None and calls_in_flight(self.state.run_id) == WINDOW)

    @contextmanager
    def _watch(self, state):
        self.state = state
        yield

    def ended(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.summary

    def rows(self):
        shards = list(self.output.rglob("shard-*.jsonl"))
        return [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]


@pytest.fixture
def models(monkeypatch):
    provider = Provider()
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-tests")
    monkeypatch.setattr(registry, "connect", lambda name, gateway: provider)
    yield provider.models
    for model in provider.models.values():
        model.gate.set()


def stop(one, model, monkeypatch):
    """As a signal does."""
    one.state.stop("stopped by SIGTERM")
    model.gate.set()
    return "stopped by SIGTERM"


def use_up(one, model, monkeypatch):
    """The service refuses all further calls."""
    model.error = QuotaExhausted("the day's allocation is used", status=429)
    model.gate.set()
    return "the day's allocation is used"


def fail_to_write(one, model, monkeypatch):
    """The pipeline fails while calls are in flight."""
    put = write_shards.put_shard

    def refused(store, folder, *args, **kwargs):
        if store.url == str(one.output):
            raise AccessDenied("the folder cannot be written")
        return put(store, folder, *args, **kwargs)

    monkeypatch.setattr(write_shards, "put_shard", refused)
    model.gate.set()
    return "the folder cannot be written"


@pytest.mark.parametrize("end", [stop, use_up, fail_to_write])
def test_what_ends_one_run_does_not_end_or_slow_another_one_of_the_process(tmp_path, models, monkeypatch, end):
    one, two = Started("one", tmp_path), Started("two", tmp_path)
    problem = end(one, models["one"], monkeypatch)
    assert one.ended().problem == problem
    assert (two.thread.is_alive(), two.state.stop_reason) == (True, None)
    assert (calls_in_flight(one.state.run_id), calls_in_flight(two.state.run_id)) == (0, WINDOW)
    assert two.state.counts.answered == two.state.counts.failed == 0
    models["two"].gate.set()
    summary = two.ended()
    assert (summary.problem, summary.counts.answered, summary.left) == (None, LINES, {})
    assert [row["model"] for row in two.rows()] == ["openai/two"] * LINES
    assert {row["model"] for row in one.rows()} <= {"openai/one"}
    # What is left of a run that is over does no further work, in this process or by another run's means.
    for run in (one, two):
        assert state_of(run.state.run_id).over
        with pytest.raises(EngineClosed):
            state_of(run.state.run_id).budget_within(NO_LIMITS)
