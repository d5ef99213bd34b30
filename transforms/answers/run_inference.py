"""Our models in Beam's own ``RunInference``, for other pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from apache_beam.ml.inference import base
from apache_beam.ml.inference.base import PredictionResult
from pydantic_core import to_json

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.registry import LAST_CALLS_S, get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import LineError, ModelError, StopRun
from llmdo.backends.limits.arrays import as_tuples
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.providers import split_model
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import EmbedResponse, Response
from llmdo.settings.secrets import check_header
from llmdo.transforms.answers.texts import LineTexts
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.models import SAME_PROVIDER, rules_of
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

# The handlers' engines are separate from those of our own runs.
_SHARED = "RunInference"

Example = str | Mapping[str, Any] | Request


@dataclass(frozen=True, slots=True)
class _Text:
    """A text of an example's request; it may share a call with those of other examples."""

    example: int
    request: EmbedRequest
    at: int
    gathering: LineTexts


class ModelHandler(base.ModelHandler[Example, PredictionResult, Engine]):
    """A model of any of our providers: ``RunInference(ModelHandler("@cf/baai/bge-m3"))``.

    An example is a text, a line of input for ``llmdo run`` as a dict, or a request of ``llmdo.backends.requests``. Its
    ``inference`` is a response of ``llmdo.backends.responses``, or the ModelError that says why there is none; if only
    some of its texts are refused, they have empty vectors and a warning. No example ever fails the others of its batch.
    A batch only fails by an error of the handler's own provider that would fail every call: a wrong token, the day's
    allocation used.

    Handlers of one process with the same provider and call settings share one engine with its limits and retries; at
    most ``concurrency`` of its calls are in flight. Calls of one batch are concurrent, and Beam passes the next batch
    after the last answer, so batches should be larger than ``concurrency``. There is no ledger: a bundle that Beam
    repeats is paid for again. If that matters, use ``llmdo.AskModel`` with a ledger.

    Args:
        model: PROVIDER/MODEL, or a bare ``@cf/…``.
        parameters: by OpenAI's names.
        system: a system prompt, which may have fields, as in ``Answer in {language}.``.
        prompt: a prompt with fields, as in ``Summarise: {text}``.
        line_models: which models examples may name: same-provider, any, none, ignore, or globs of PROVIDER/MODEL.
        line_parameters: with a prompt, an example's model, system and parameters are used too, instead of being
            its data.
        concurrency: calls in flight at most.
        headers: ``NAME=VARIABLE``, sent to OPENAI_BASE_URL with the variable's value where the model is loaded.
        call_timeout_s: seconds that one try may take.
        patience_s: seconds without any answer after which waiting examples get a ServiceAway.
        min_batch_size, max_batch_size: examples of a batch, as for Beam's handlers.

    Raises ModelNotFound for a name without a known provider, ValueError for wrong ``line_models``, ``headers`` or
    seconds.
    """

    def __init__(
        self,
        model: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        system: str = "",
        prompt: str = "",
        line_models: str = SAME_PROVIDER,
        line_parameters: bool = False,
        concurrency: int = 64,
        headers: Sequence[str] = (),
        call_timeout_s: float = CALL_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        min_batch_size: int | None = None,
        max_batch_size: int = 256,
    ) -> None:
        super().__init__(min_batch_size=min_batch_size, max_batch_size=max_batch_size)
        self._provider, name = split_model(model)
        self._defaults = Defaults(
            f"{self._provider}/{name}",
            dict(parameters or {}),
            system,
            prompt,
            line_models=line_models,
            line_parameters=line_parameters,
        )
        rules_of(line_models)
        for header in headers:
            check_header(header)
        if not (call_timeout_s > 0 and patience_s > 0):
            raise ValueError("call_timeout_s and patience_s are seconds: give numbers above 0")
        self._settings = CallSettings(
            concurrency,
            own=frozenset({self._provider}),
            headers=tuple(headers),
            call_timeout_s=call_timeout_s,
            patience_s=patience_s,
            run_id=_SHARED,
        )

    def load_model(self) -> Engine:
        """The engine of this process, which connects when it is first used."""
        engine = get_engine(self._settings)
        if engine.stopped is not None:  # in an earlier pipeline of this process
            engine.close(LAST_CALLS_S)  # other batches may have calls in flight
            engine = get_engine(self._settings)
        return engine

    def run_inference(
        self,
        batch: Sequence[Example],
        model: Engine,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002  Beam passes it; see validate_inference_args
    ) -> Iterable[PredictionResult]:
        """One result for each example of ``batch``, in their order, by the engine ``model``. Raises StopRun."""
        done: SimpleQueue[tuple[int, Done]] = SimpleQueue()
        results: dict[int, Response | ModelError] = {}
        texts: dict[tuple[str, str, str], list[_Text]] = {}
        for index, example in enumerate(batch):
            try:
                provider, request = self._request(example, model)
            except LineError as error:
                results[index] = error
                continue
            if isinstance(request, EmbedRequest) and request.texts:
                gathering = LineTexts(len(request.texts))
                alike = texts.setdefault((provider, request.model, repr(request.parameters)), [])
                alike += [_Text(index, request, at, gathering) for at in range(len(request.texts))]
            else:
                model.submit(provider, request, partial(_keep, done, index))
        for (provider, name, _), alike in texts.items():
            most = model.array_size(provider, name)
            for start in range(0, len(alike), most):
                self._submit_texts(model, provider, alike[start : start + most], done)
        while len(results) < len(batch):
            index, outcome = done.get()
            if isinstance(outcome.error, StopRun):
                raise outcome.error
            result = outcome.response or outcome.error
            assert result is not None  # noqa: S101  Done has exactly one of the two
            results[index] = as_tuples(result) if isinstance(result, EmbedResponse) else result
        return [PredictionResult(example, results[i], self._defaults.model) for i, example in enumerate(batch)]

    def get_metrics_namespace(self) -> str:
        """The namespace of the metrics that Beam collects for the handler."""
        return "BeamML_LLMDO"

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Refuses arguments: parameters are set on the handler or in an example."""
        if inference_args:
            raise ValueError("inference_args are not used: give parameters to ModelHandler, or in an example")

    def _request(self, example: Example, engine: Engine) -> tuple[str, Request]:
        if isinstance(example, EmbedRequest) and not _are_strings(example.texts):
            raise BadLine("an EmbedRequest's texts must all be strings")  # they share calls with other examples' texts
        if isinstance(example, ChatRequest | EmbedRequest | RawRequest):
            return self._provider, example
        document: Any = example
        if isinstance(example, str):
            provider, _, model = self._defaults.model.partition("/")
            is_text = self._defaults.prompt or engine.max_texts(provider, model) > 1
            document = {"text" if is_text else "prompt": example}
        try:
            document = dict(document) if isinstance(document, Mapping) else document
            line = to_json(document)
        except Exception as error:  # an object that is not JSON may raise anything
            raise BadLine(f"the example cannot be written as JSON: {error}") from error
        if isinstance(document, dict) and not _are_strings(document):
            raise BadLine("the names of an example's fields must be strings")
        prompt = parse_prompt(line, "", self._defaults, engine.max_texts)
        return prompt.provider, prompt.request

    @staticmethod
    def _submit_texts(
        engine: Engine, provider: str, alike: Sequence[_Text], done: SimpleQueue[tuple[int, Done]]
    ) -> None:
        def keep(at: int, outcome: Done) -> None:
            text = alike[at]
            if together := text.gathering.add(text.at, outcome):
                done.put((text.example, together.done))

        request = alike[0].request
        texts = [text.request.texts[text.at] for text in alike]
        engine.submit_texts(provider, request.model, texts, request.parameters, keep)


def _are_strings(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)


def _keep(done: SimpleQueue[tuple[int, Done]], index: int, outcome: Done) -> None:
    done.put((index, outcome))
