"""Two AskModel steps of one process, asking two services of ``llmdo local`` in their own shapes, do not meet."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from llmdo import AskModel
from llmdo.backends.engine import registry
from llmdo.backends.errors import BudgetSpent
from llmdo.local.anthropic.api import AnthropicApi
from llmdo.local.openai.api import OpenAIApi
from llmdo.transforms.rows import ask_model
from tests.local.cloudflare import Running

OPENAI, ANTHROPIC = "openai/gpt-4o-mini", "anthropic/claude-haiku-4-5"
KEYS = {"openai": "sk-key-of-openai", "anthropic": "sk-ant-key-of-anthropic"}
WINDOWS = {"openai": 2, "anthropic": 3}
ROWS = [{"text": f"t{number}"} for number in range(12)]
# One bundle in each of four threads at once.
SEVERAL = ["--runner=FnApiRunner", "--direct_num_workers=4", "--direct_running_mode=multi_threading"]


class Seen:
    """What each of the two services was sent: the keys, the calls, and the most calls in flight."""

    def __init__(self) -> None:
        self.keys: dict[str, Counter[str]] = {name: Counter() for name in KEYS}
        self.most = dict.fromkeys(KEYS, 0)
        self._now = dict.fromkeys(KEYS, 0)

    def watch(self, patch: pytest.MonkeyPatch, name: str, api: type[Any], header: str) -> None:
        answer = api.answer

        async def answered(service: Any, call: Any) -> Any:  # on the server's one thread
            if call.method != "POST":
                return await answer(service, call)
            self.keys[name][call.headers.get(header, "").removeprefix("Bearer ")] += 1
            self._now[name] += 1
            self.most[name] = max(self.most[name], self._now[name])
            try:
                return await answer(service, call)
            finally:
                self._now[name] -= 1

        patch.setattr(api, "answer", answered)

    def calls(self) -> dict[str, int]:
        return {name: keys.total() for name, keys in self.keys.items()}


@pytest.fixture
def seen(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen = Seen()
    seen.watch(monkeypatch, "openai", OpenAIApi, "Authorization")
    seen.watch(monkeypatch, "anthropic", AnthropicApi, "x-api-key")
    for name, key in KEYS.items():
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", cloudflare.env[f"LOCAL_{name.upper()}_BASE_URL"])
        monkeypatch.setenv(f"{name.upper()}_API_KEY", key)
    registry.close_engines()
    yield seen
    registry.close_engines()


class _Bundles:
    """How many bundles were open at once."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.most = self._open = 0
        self._changed = threading.Condition()

    def enter(self) -> None:
        """Waits until a second one has come, so that two are at work at once."""
        with self._changed:
            self._open += 1
            self.most = max(self.most, self._open)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most > 1, timeout=60)

    def leave(self) -> None:
        with self._changed:
            self._open -= 1


bundles = _Bundles()  # of the module: workers of threads have copies of the steps


class _CountBundles(beam.DoFn):
    def start_bundle(self) -> None:
        bundles.enter()

    def process(self, row: Any) -> Iterator[Any]:
        yield row

    def finish_bundle(self) -> None:
        bundles.leave()


def ask_both(steps: dict[str, AskModel], arguments: list[str] = SEVERAL) -> None:
    """Asks both services about all rows in one pipeline; checks the answers of each."""
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        rows = pipeline | beam.Create(ROWS, reshuffle=True) | beam.ParDo(_CountBundles())
        for name, step in steps.items():
            answers = rows | name >> step
            found = answers | f"of {name}" >> beam.Map(lambda row: (row["text"], row["answer"], row["error"]))
            prompt = step.prompt.removesuffix("{text}")
            wanted = [(row["text"], f"echo: {prompt}{row['text']}", None) for row in ROWS]
            assert_that(found, equal_to(wanted), label=f"answers of {name}")


def both(folder: Path, **more: Any) -> dict[str, AskModel]:
    return {
        "openai": AskModel(OPENAI, "O: {text}", ledger=str(folder / "a"), concurrency=WINDOWS["openai"], **more),
        "anthropic": AskModel(
            ANTHROPIC, "A: {text}", ledger=str(folder / "b"), concurrency=WINDOWS["anthropic"], **more
        ),
    }


@pytest.mark.fast("several at once")
@pytest.mark.parametrize("arguments", [["--runner=FnApiRunner"], SEVERAL], ids=["one bundle", "several at once"])
def test_each_step_has_its_own_service_key_window_and_ledger(
    seen: Seen, cloudflare: Running, tmp_path: Path, arguments: list[str]
) -> None:
    bundles.reset()
    if arguments is not SEVERAL:
        bundles.most = 2  # nobody waits for a second one
    for target in KEYS:
        cloudflare.fault(target, probability=1.0, latency_s=0.05)
    ask_both(both(tmp_path), arguments)
    assert bundles.most > 1
    assert seen.keys == {name: {key: len(ROWS)} for name, key in KEYS.items()}
    assert all(seen.most[name] <= window for name, window in WINDOWS.items())
    ask_both(both(tmp_path), arguments)  # what is in its own ledger is not paid again
    assert seen.calls() == dict.fromkeys(KEYS, len(ROWS))
    assert (ask_model._steps, registry._engines) == ({}, {})  # nothing of a step outlives its pipeline


@pytest.mark.slow
def test_what_is_in_the_ledger_of_one_is_of_no_use_to_the_other(seen: Seen, tmp_path: Path) -> None:
    for places in (("a", "b"), ("b", "a")):
        names = zip(KEYS, (OPENAI, ANTHROPIC), places, strict=True)
        steps = {name: AskModel(model, "{text}", ledger=str(tmp_path / place)) for name, model, place in names}
        ask_both(steps, ["--runner=FnApiRunner"])
    assert seen.calls() == dict.fromkeys(KEYS, 2 * len(ROWS))


@pytest.mark.slow
def test_a_limit_is_of_one_step_and_what_another_spends_does_not_count(seen: Seen) -> None:
    words = " word" * 20

    def run(*steps: AskModel) -> int:
        """Asks all steps about the rows; returns the tokens that they used."""
        bundles.reset()
        with beam.Pipeline(options=PipelineOptions(SEVERAL)) as pipeline:
            rows = pipeline | beam.Create(ROWS, reshuffle=True) | beam.ParDo(_CountBundles())
            for number, step in enumerate(steps):
                answers = rows | f"ask {number}" >> step
                errors = answers | f"errors {number}" >> beam.Map(lambda row: row["error"])
                assert_that(errors, equal_to([None] * len(ROWS)), label=f"no error {number}")
        counters = pipeline.result.metrics().query()["counters"]
        return sum(one.committed for one in counters if one.key.metric.name in ("input_tokens", "output_tokens"))

    prompt, short = "{text}" + words, {"max_tokens": 30}
    used = run(AskModel(OPENAI, prompt, parameters=short))
    limit = used * 3 // 2  # enough for one of them, and not for both
    both = (AskModel(model, prompt, parameters=short, max_tokens_total=limit) for model in (OPENAI, ANTHROPIC))
    assert run(*both) > limit


def test_a_step_that_has_spent_its_limit_stops_its_own_pipeline_and_no_other(seen: Seen, cloudflare: Running) -> None:
    cloudflare.fault("anthropic", probability=1.0, latency_s=0.02)

    def run(step: AskModel) -> None:
        with beam.Pipeline(options=PipelineOptions(SEVERAL)) as pipeline:
            answers = pipeline | beam.Create(ROWS) | step
            found = answers | beam.Map(lambda row: row["error"])
            assert_that(found, equal_to([None] * len(ROWS)))

    with ThreadPoolExecutor(2) as pool:
        spent = pool.submit(run, AskModel(OPENAI, "{text}", max_tokens_total=30, concurrency=1))
        whole = pool.submit(run, AskModel(ANTHROPIC, "{text}", concurrency=3))
        with pytest.raises(Exception, match="max_tokens_total=30 ") as failed:
            spent.result()
        whole.result()
    assert BudgetSpent.__name__ in str(failed.value)
    assert seen.calls()["anthropic"] == len(ROWS) > seen.calls()["openai"]


@pytest.mark.slow
def test_a_key_that_is_missing_or_wrong_is_of_one_step(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    steps = both(tmp_path)
    with pytest.raises(Exception, match="OPENAI_API_KEY"):
        ask_both({"openai": steps["openai"]}, ["--runner=FnApiRunner"])
    ask_both({"anthropic": steps["anthropic"]}, ["--runner=FnApiRunner"])
    assert set(seen.keys["openai"]) == {""}  # not the other service's
    assert seen.keys["anthropic"] == {KEYS["anthropic"]: len(ROWS)}
