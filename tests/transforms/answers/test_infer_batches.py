"""Lines that are answered by way of batches: taken in ahead of the window, one outcome each, paid once."""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing, suppress

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.backends.backend import BatchLimits
from llmdo.backends.engine import batch_polls, batches, registry
from llmdo.backends.engine.registry import close_engines, stop_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ContentFiltered, Retryable, StopRun
from llmdo.backends.limits.retry import Retry
from llmdo.backends.requests import batch_places
from llmdo.backends.responses import BatchState, ChatResponse, EmbedResponse, RawResponse
from llmdo.backends.usage import Usage
from llmdo.storage.objects.store import Location
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.elements import Answer, Blank, Failure, FileVersion, Line
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.run import Run
from tests.states import run_state

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 10_000_000)
SIZE = 1000


class Scripted:
    """Stands for a provider with batches, which hold until ``open`` is set; what an item is, its prompt says."""

    name = "workers-ai"

    def __init__(self):
        self.called, self.handed_over = [], []
        self.open = threading.Event()
        self.open.set()

    async def execute(self, request):
        self.called.append(request.messages[-1].content)
        return self.answer(request)

    async def embed(self, request):
        self.called.append(request.texts)
        return EmbedResponse(tuple((float(len(t)),) for t in request.texts), Usage(len(request.texts)), request.model)

    async def run(self, request):
        return RawResponse(dict(request.input), Usage(), request.model)

    def max_texts(self, model):
        return 10 if "bge" in model else 1

    async def list_models(self):
        raise Retryable("no list")

    def takes_batches(self, model):
        return True

    async def batch_share(self, request):
        return 1e-6

    def batch_limits(self, model):
        return BatchLimits(1000, 10_000_000, 0.0, finds=False)

    async def find_batch(self, model, nonce, count, since):
        raise NotImplementedError

    async def cancel_batch(self, model, batch):
        raise NotImplementedError

    async def submit_batch(self, model, requests, nonce):
        self.handed_over.append(list(requests))
        return f"batch-{len(self.handed_over) - 1}"

    async def poll_batch(self, model, batch, requests, places):
        await asyncio.sleep(0.01)
        if not self.open.is_set():
            return BatchState(None)
        whole = self.handed_over[int(batch.removeprefix("batch-"))]
        known = batch_places(whole)
        assert all(known[place.number] == place for place in places)
        return BatchState(self._results([whole[place.number] for place in places]))

    async def _results(self, requests):
        for number, request in enumerate(requests):
            yield number, self.answer(request)

    def answer(self, request):
        text = request.messages[-1].content
        if text.startswith("flagged"):
            return ContentFiltered("flagged", code=3030)
        return ChatResponse(f"re: {text}", "stop", Usage(3, 2), request.model)

    async def aclose(self):
        pass


@pytest.fixture
def provider(monkeypatch):
    scripted = Scripted()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: scripted)
    monkeypatch.setattr(batches, "LINGER_S", 1.0)
    monkeypatch.setattr(batch_polls, "FIRST_POLL_S", 0.05)
    yield scripted
    close_engines()


def lines(count, start=0, **more):
    documents = [{"id": i, "prompt": f"hello {i}", **more} for i in range(start, start + count)]
    return [
        Line(FILE, i * SIZE, (i + 1) * SIZE, json.dumps(document).encode())
        for i, document in enumerate(documents, start)
    ]


RUN = Run("run-1", Location("out", ""))

# A module global, since Beam pickles closures: what a step puts into a local list is never seen here.
FOUND = []


def collect(element):
    FOUND.append(element)


def outcomes(tiles, **settings):
    """Runs Infer on FnApiRunner and returns what it emits, sorted by offset."""
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        step = Infer(Defaults("workers-ai/@cf/chat"), CallSettings(**{"window": 4, "mode": "batch", **settings}), RUN)
        _ = pipeline | beam.Create(tiles, reshuffle=False) | step | beam.Map(collect)
    return sorted(FOUND, key=lambda outcome: outcome.start)


def said(outcome):
    return json.loads(outcome.row)["response"]["body"]["choices"][0]["message"]["content"]


def test_a_small_window_does_not_make_batches_small(provider, monkeypatch):
    monkeypatch.setattr(batches, "LINGER_S", 2.0)  # a busy machine may stop the submitters for longer than 1.0 s
    found = outcomes(lines(2500))
    assert sorted(map(len, provider.handed_over)) == [500, 1000, 1000]
    assert [said(outcome) for outcome in found] == [f"re: hello {i}" for i in range(2500)]
    assert {json.loads(outcome.row)["attempts"] for outcome in found} == {1}
    assert provider.called == []
    assert run_state().counts.answered == 2500


def test_without_a_mode_every_line_is_called(provider):
    outcomes(lines(50), mode=CallSettings().mode)
    assert (len(provider.called), provider.handed_over) == (50, [])


def test_auto_calls_for_a_few_lines(provider):
    outcomes(lines(50), mode="auto")
    assert (len(provider.called), provider.handed_over) == (50, [])


def test_a_line_that_fails_in_a_batch_is_a_failure_among_answers_and_blanks_go_through(provider):
    flagged = Line(FILE, 9 * SIZE, 10 * SIZE, b'{"prompt": "flagged one"}')
    found = outcomes([*lines(9), flagged, Blank(FILE, 10 * SIZE, 10 * SIZE + 1)])
    assert [type(outcome) for outcome in found] == [Answer] * 9 + [Failure, Blank]
    error = json.loads(found[9].row)["error"]
    assert (error["class"], error["attempts"]) == ("ContentFiltered", 1)
    assert provider.called == []


def test_texts_are_called_in_arrays_beside_batches(provider):
    texts = [
        Line(FILE, i * SIZE, (i + 1) * SIZE, json.dumps({"text": "x" * i, "model": "@cf/bge"}).encode())
        for i in range(100, 125)
    ]
    found = outcomes([*lines(20), *texts])
    assert [len(batch) for batch in provider.handed_over] == [20]
    assert sorted(map(len, provider.called)) == [5, 10, 10]
    assert len(found) == 45


def kept(ledger):
    """How many names of batches and answers are in it."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]
    return 0  # it is not made yet


def attached(provider):
    """Entries of the ledger when 1,200 requests are handed over, and the last batch has its name there."""
    whole = sum(map(len, provider.handed_over)) == 1200
    return 1200 + 1 + 2 * len(provider.handed_over) if whole else 10_000


def test_a_run_that_is_stopped_ends_at_once_and_the_next_one_fetches_what_was_handed_over(provider, tmp_path):
    paid = LedgerSettings(f"sqlite:///{tmp_path}/ledger.sqlite")
    provider.open.clear()

    def stop_when_handed_over():
        while not provider.handed_over or kept(tmp_path / "ledger.sqlite") < attached(provider):
            threading.Event().wait(0.01)
        stop_engines(StopRun("enough"))

    stopper = threading.Thread(target=stop_when_handed_over)
    stopper.start()
    assert outcomes(lines(1200), kept=paid) == []
    stopper.join()
    handed_over = len(provider.handed_over)  # where lines come slowly, in more than two
    assert str(run_state().stop_reason) == "enough"
    close_engines()
    provider.open.set()
    found = outcomes(lines(1200), kept=paid)
    assert [said(outcome) for outcome in found] == [f"re: hello {i}" for i in range(1200)]
    assert (len(provider.handed_over), provider.called) == (handed_over, [])


def test_the_deadline_of_a_request_is_that_of_a_batch(provider):
    provider.open.clear()
    found = outcomes(lines(10), retry=Retry(deadline_s=0.5))
    assert [type(outcome) for outcome in found] == [Answer] * 10
    assert (len(provider.handed_over), len(provider.called)) == (1, 10)
    assert CallSettings().retry.deadline_s == Retry().deadline_s
