"""Answers a batch of examples: what ``ModelHandler`` gives Beam as its loaded model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.registry import HeldEngine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed, LineError, ModelError, StopRun
from llmdo.backends.limits.arrays import as_tuples
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import EmbedResponse, Response
from llmdo.backends.usage import Usage
from llmdo.transforms.answers.bundle_calls import BundleCalls
from llmdo.transforms.answers.metrics import InferMetrics
from llmdo.transforms.answers.texts import Embedded
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

Example = str | Mapping[str, Any] | Request


class LoadedModel:
    """An engine, which is open while anybody has such an object with its settings.

    Any number of threads may use it. What goes in and comes out can be pickled, since Beam also calls it from other
    processes (a ``KeyedModelHandler`` with a handler for each key); then nothing is counted.
    """

    def __init__(self, calls: CallSettings) -> None:
        self._held, self._prices = HeldEngine(calls), Prices()
        self._held.get()  # a ledger that cannot be opened fails before any example comes
        self._of_thread = threading.local()

    def infer(self, batch: Sequence[Example], defaults: Defaults) -> list[Response | ModelError]:
        """One result for each example, in their order. Raises StopRun, when the batch's other calls have ended."""
        engine, metrics = self._held.get(), self._metrics()
        calls: BundleCalls[tuple[int, str, str]] = BundleCalls(engine, self._prices)
        results: dict[int, Response | ModelError] = {}

        def keep(ended: Iterable[tuple[tuple[int, str, str], Embedded]]) -> None:
            for (index, provider, model), result in ended:
                results[index] = self._result(provider, model, result, metrics)

        for index, example in enumerate(batch):
            try:
                provider, request = _request(example, defaults, engine)
            except LineError as error:
                metrics.failure(error)
                results[index] = error
                continue
            self._prices.ask(provider)  # starts reading prices before they are needed
            keep(calls.submit((index, provider, request.model), provider, request))
        keep(calls.all())
        metrics.engine(engine, now=True)
        stopped = next((one for one in results.values() if isinstance(one, StopRun)), None)
        if stopped is None and calls.refused:
            stopped = engine.stopped or EngineClosed("the engine was closed: let the runner try the bundle again")
        if stopped is not None:
            raise stopped.with_traceback(None)  # that of the engine's own calls would hide the sentence
        return [results[index] for index in range(len(batch))]

    def _metrics(self) -> InferMetrics:
        if not hasattr(self._of_thread, "metrics"):
            self._of_thread.metrics = InferMetrics()
        metrics: InferMetrics = self._of_thread.metrics
        return metrics

    def _result(self, provider: str, model: str, ended: Embedded, metrics: InferMetrics) -> Response | ModelError:
        done = ended.done
        if done.error is not None:
            if not isinstance(done.error, StopRun):
                metrics.failure(done.error)
            return done.error
        response = done.response
        assert response is not None  # noqa: S101  Done has exactly one of the two
        paid = [part for part in ended.parts or (response,) if not part.shared]
        usd = self._prices.cost(provider, model, *paid)
        metrics.answer(Usage() if response.shared else response.usage, usd, done)
        return as_tuples(response) if isinstance(response, EmbedResponse) else response


def _request(example: Example, defaults: Defaults, engine: Engine) -> tuple[str, Request]:
    """The provider that is asked, and what. Raises LineError, and for the handler's own provider any ModelError."""
    provider, _, model = defaults.model.partition("/")
    if isinstance(example, EmbedRequest) and not (_are_strings(example.texts) and example.texts):
        # Its texts share calls with those of other examples.
        raise BadLine("an EmbedRequest's texts must all be strings, and at least one")
    if isinstance(example, ChatRequest | EmbedRequest | RawRequest):
        return provider, example
    document: Any = example
    if isinstance(example, str):
        is_text = defaults.prompt or engine.max_texts(provider, model) > 1
        document = {"text" if is_text else "prompt": example}
    try:
        document = dict(document) if isinstance(document, Mapping) else document
        line = to_json(document)
    except Exception as error:  # an object that is not JSON may raise anything
        raise BadLine(f"the example cannot be written as JSON: {error}") from error
    if isinstance(document, dict) and not _are_strings(document):
        raise BadLine("the names of an example's fields must be strings")
    prompt = parse_prompt(line, "", defaults, engine.max_texts)
    return prompt.provider, prompt.request


def _are_strings(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)
