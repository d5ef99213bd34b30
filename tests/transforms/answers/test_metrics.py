import asyncio
import json
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.backends.engine import registry
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import InvalidRequest, Overloaded
from llmdo.backends.limits import retry
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage
from llmdo.storage.ledger.opening import open_ledger
from llmdo.storage.objects.store import Location
from llmdo.transforms import run_state as run_state_module
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.answers.metrics import METRICS_NAMESPACE
from llmdo.transforms.elements import FileVersion, Line
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.run import Run

FILE = FileVersion("r2://bucket", "a.jsonl", "e1", 100_000)
NO_LEDGER = LedgerSettings()


class Flaky:
    """Stands for a provider: the first try of a busy line is refused, and a bad one always."""

    name = "workers-ai"

    def __init__(self):
        self.seen = set()

    async def execute(self, request):
        text = request.messages[-1].content
        await asyncio.sleep(0.002)
        if text.startswith("bad"):
            raise InvalidRequest("does not fit", status=400)
        if text.startswith("busy") and text not in self.seen:
            self.seen.add(text)
            raise Overloaded("out of capacity", status=429, code=3040)
        return ChatResponse("x", "stop", Usage(3, 2), request.model)

    def max_texts(self, model):
        return 1

    async def aclose(self):
        pass


@pytest.fixture
def engines(monkeypatch):
    backend = Flaky()
    priced = Models((ModelInfo("workers-ai/@cf/chat", price=Price(0.1, 0.1)),))  # half a micro-dollar a line
    monkeypatch.setattr(registry, "connect", lambda name, gateway: backend)
    monkeypatch.setattr(run_state_module, "Budget", lambda limits, _: Budget(limits, Prices(lambda provider: priced)))
    retry.set_instant(True)
    yield
    retry.set_instant(False)
    close_engines()


def run(prompts, paid=NO_LEDGER):
    lines = [Line(FILE, 10 * i, 10 * i + 10, json.dumps({"prompt": p}).encode()) for i, p in enumerate(prompts)]
    pipeline = TestPipeline(runner="FnApiRunner")
    step = Infer(Defaults("workers-ai/@cf/chat"), CallSettings(4, kept=paid), Run("run-1", Location("out", "")))
    _ = pipeline | beam.Create(lines) | step
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace(METRICS_NAMESPACE))
    counters = {metric.key.metric.name: metric.committed for metric in found["counters"]}
    return counters, {metric.key.metric.name: metric.committed for metric in found["distributions"]}


def test_the_runner_is_told_lines_calls_retries_tokens_cost_and_latency(engines):
    counters, distributions = run(["hello"] * 20 + [f"busy {i}" for i in range(5)] + ["bad", "bad"])
    assert (counters["lines_answered"], counters["lines_failed"]) == (25, 2)
    assert counters["lines_failed.InvalidRequest"] == 2
    assert (counters["input_tokens"], counters["output_tokens"]) == (75, 50)
    assert counters["cost_microdollars"] in (11, 12)  # half of 25; each bundle keeps what is less than one
    assert (counters["calls"], counters["retries"]) == (32, 5)
    assert counters["retries.Overloaded"] == 5
    assert distributions["latency_ms"].count == 25
    assert distributions["latency_ms"].min >= 1
    assert 1 <= distributions["window"].min <= distributions["window"].max <= 4


def test_dataflows_autoscaler_is_told_how_long_calls_were_held_back(engines, monkeypatch):
    whole = Engine.stats
    monkeypatch.setattr(Engine, "stats", lambda self: replace(whole(self), throttled_s=12.7))
    assert run(["hello"] * 5)[0]["cumulativeThrottlingSeconds"] == 12
    assert "cumulativeThrottlingSeconds" not in run(["hello"] * 5)[0]  # it was told already
    monkeypatch.setattr(Engine, "stats", lambda self: replace(whole(self), throttled_s=14.0))
    assert run(["hello"] * 5)[0]["cumulativeThrottlingSeconds"] == 2


def test_an_answer_from_the_ledger_is_counted_as_that_and_is_no_call(engines, tmp_path):
    paid = LedgerSettings(f"sqlite:///{tmp_path}/ledger.sqlite")
    assert open_ledger(paid.ledger) is not None
    assert run(["hello"] * 10, paid)[0].get("answers_reused") is None
    counters, distributions = run(["hello"] * 10, paid)
    assert (counters["answers_reused"], counters["lines_answered"]) == (10, 10)
    assert "calls" not in counters
    assert "latency_ms" not in distributions
