"""Our models in Beam's own ``RunInference``, for other pipelines."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference import base
from apache_beam.ml.inference.base import PredictionResult

from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ModelNotFound, short
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.concurrency_limit import named_concurrency
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.parameters import OURS
from llmdo.backends.providers import split_model
from llmdo.settings.secrets import check_header
from llmdo.storage.ledger.ledger import NO_LEDGER
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.answers.loaded_model import Example, LoadedModel
from llmdo.transforms.prompts.models import SAME_PROVIDER, rules_of
from llmdo.transforms.prompts.parse import Defaults

# The handlers' engines are separate from those of our own runs.
_SHARED = "RunInference"
# Windows in a batch: it ends with its slowest call, and the less often that happens the better.
_WINDOWS = 4
_LONGEST = 1000  # bytes of a file that names a model


class ModelHandler(base.ModelHandler[Example, PredictionResult, LoadedModel]):
    """A model of any of our providers: ``RunInference(ModelHandler("@cf/baai/bge-m3"))``.

    An example is a text, a line of input for ``llmdo run`` as a dict, or a request of ``llmdo.backends.requests``. Its
    ``inference`` is a response of ``llmdo.backends.responses``, or the ModelError that says why there is none; if only
    some of its texts are refused, they have empty vectors and a warning. No example ever fails the others of its batch.
    A batch only fails by an error of the handler's own provider that would fail every call: a wrong token, the day's
    allocation used. The next batch, or the runner's next try, calls again.

    Handlers of one process with the same provider and call settings share one engine with its limits and retries; at
    most ``concurrency`` of its calls are in flight. Other handlers have engines of their own. An engine is closed when
    Beam has dropped the last model that needs it. Calls of one batch are concurrent, and Beam passes the next batch
    after the last answer. Beam would begin with batches of one example and measure how long they take; here batches
    have four times ``concurrency`` examples at once, unless a size is given.

    A bundle that Beam repeats is paid for again, except with a ``ledger``: there each answer is kept as it arrives, by
    what was asked.

    ``RunInference``'s ``model_metadata_pcoll`` changes the model while a pipeline runs: a ``model_id`` is a
    PROVIDER/MODEL, or a file with that name in it. (Beam's local runners and Prism refuse ``watch_model_pattern``.) Its
    ``inference_args`` are parameters, which override the handler's.

    Args:
        model: PROVIDER/MODEL, or a bare ``@cf/…``.
        parameters: by OpenAI's names.
        system: a system prompt, which may have fields, as in ``Answer in {language}.``.
        prompt: a prompt with fields, as in ``Summarise: {text}``.
        line_models: which models examples may name: same-provider, any, none, ignore, or globs of PROVIDER/MODEL.
        line_parameters: with a prompt, an example's model, system and parameters are used too, instead of being
            its data.
        concurrency: calls in flight at most; refusals lower it. ``"fixed:N"``: they do not.
        headers: ``NAME=VARIABLE``, sent to OPENAI_BASE_URL with the variable's value where the model is loaded.
        call_timeout_s: seconds that one try may take.
        patience_s: seconds without any answer after which waiting examples get a ServiceAway.
        ledger: ``sqlite:///PATH``, ``r2://BUCKET/PREFIX/``, a folder, or ``none``.
        min_batch_size, max_batch_size: examples of a batch, as for Beam's handlers.
        max_batch_duration_secs: how long a batch may wait for more examples, over several bundles; for streaming.

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
        concurrency: int | str = 64,
        headers: Sequence[str] = (),
        call_timeout_s: float = CALL_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        ledger: str = NO_LEDGER,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
        max_batch_duration_secs: int | None = None,
    ) -> None:
        window = named_concurrency(concurrency)
        if not (call_timeout_s > 0 and patience_s > 0):
            raise ValueError("call_timeout_s and patience_s must be above 0")
        if min_batch_size is None and max_batch_size is None:
            min_batch_size = max_batch_size = _WINDOWS * window.calls
        super().__init__(
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            max_batch_duration_secs=max_batch_duration_secs,
        )
        self._defaults = Defaults(
            "/".join(split_model(model)),
            dict(parameters or {}),
            system,
            prompt,
            line_models=line_models,
            line_parameters=line_parameters,
        )
        rules_of(line_models)
        for header in headers:
            check_header(header)
        self._calls = CallSettings(
            window.calls,
            fixed=window.fixed,
            kept=None if ledger == NO_LEDGER else LedgerSettings(ledger, "same-request"),
            headers=tuple(headers),
            call_timeout_s=call_timeout_s,
            patience_s=patience_s,
            run_id=_SHARED,
        )

    def load_model(self) -> LoadedModel:
        """The engine of this process, which connects when it is first used. Raises what opening the ledger raises."""
        return LoadedModel(replace(self._calls, own=self._defaults.providers))

    def run_inference(
        self, batch: Sequence[Example], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """One result for each example of ``batch``, in their order, by ``model``. Raises StopRun.

        ``inference_args``: parameters that override the handler's.
        """
        defaults = self._defaults
        if inference_args:
            defaults = replace(defaults, parameters={**defaults.parameters, **inference_args})
        results = model.infer(batch, defaults)
        return [
            PredictionResult(example, result, defaults.model) for example, result in zip(batch, results, strict=True)
        ]

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        """Of ``batch``, by pickle; 0 for what it does not take: that must not fail a batch that is paid for."""
        try:
            return len(pickle.dumps(batch))
        except Exception:  # noqa: BLE001 - an example's own code may raise anything
            return 0

    def get_metrics_namespace(self) -> str:
        """The namespace of the metrics that Beam collects for the handler."""
        return "BeamML_LLMDO"

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Raises ValueError for ``inference_args`` that are no parameters of a request."""
        wrong = [name for name in inference_args or {} if not isinstance(name, str) or name in OURS]
        if wrong:
            raise ValueError(
                f"inference_args are parameters by OpenAI's names, and {wrong[0]!r} is not one: leave it out, or set "
                "it in the examples"
            )

    def update_model_path(self, model_path: str | None = None) -> None:
        """Asks another model from now on: ``model_path`` is PROVIDER/MODEL, or a file that names one; None: no other.

        Raises ModelNotFound for what is neither.
        """
        if model_path:
            self._defaults = replace(self._defaults, model=_model_at(model_path))


def _model_at(path: str) -> str:
    try:
        return "/".join(split_model(path))
    except ModelNotFound:
        pass
    try:
        with FileSystems.open(path) as file:
            name = file.read(_LONGEST).decode(errors="replace").strip()
    except (OSError, ValueError) as error:  # ValueError: of a place that no file system knows
        raise ModelNotFound(
            f"{path!r} is neither PROVIDER/MODEL nor a file that can be read: give one of them as the model_id"
        ) from error
    try:
        return "/".join(split_model(name))
    except ModelNotFound:
        raise ModelNotFound(f"{path}: {short(name)} is not PROVIDER/MODEL: write a model's whole name there") from None
