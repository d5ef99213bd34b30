"""Asks a model about each row of a pipeline: the engine, ledger and limits of ``llmdo run`` as one step."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import uuid4

import apache_beam as beam
from apache_beam.pvalue import PCollection, TaggedOutput
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.backends.engine.registry import close_engines, working_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed, LineError, ModelError, ModelUnusable, StopRun
from llmdo.backends.json_mode.response_format import named_schema
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.concurrency_limit import named_concurrency
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S, THREE_TRIES, Retry
from llmdo.backends.money.limits import NO_LIMITS, Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import own_prices
from llmdo.backends.money.prices import Prices
from llmdo.backends.providers import split_model
from llmdo.backends.usage import Usage
from llmdo.settings.secrets import check_header
from llmdo.storage.ledger.ledger import NO_LEDGER
from llmdo.transforms.answers.bundle_calls import BundleCalls
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.answers.metrics import InferMetrics
from llmdo.transforms.answers.texts import Embedded
from llmdo.transforms.prompts.parse import Defaults, Prompt
from llmdo.transforms.prompts.templates import template_problem
from llmdo.transforms.rows.asking import (
    WITHOUT_ANSWER,
    Asking,
    answer_columns,
    are_dicts,
    check_free,
    failure_of,
    failure_type,
    fields_of_row,
    fields_of_rows,
    prompt_of,
)
from llmdo.transforms.rows.columns import Column, given_object, given_schema, nullable, property_columns

_ANSWERS = "answers"
# By step: its budget in this process, and how many instances of its DoFn use it.
_steps: dict[str, tuple[Budget, int]] = {}
_opening = threading.Lock()


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class AskModel(beam.PTransform):
    """Rows → rows with a model's answers: ``rows | AskModel("openai/gpt-4o-mini", prompt="Summarise: {text}")``.

    A row is a ``beam.Row``, a NamedTuple or another row with a Beam schema, a dict, or a text, which is the field
    ``text``. It keeps its fields and gets ``answer`` (text; null where the row has none), with ``schema`` also a typed
    column for each of its properties, with ``embed`` instead ``embedding`` (floats), and ``error``: why there is no
    answer, or null. Dicts stay dicts. Rows with a schema give rows with a schema.

    A row never fails a bundle. With ``with_error_handler`` or ``with_exception_handling`` rows without an answer are a
    second output, each as a Row(row, error_class, code, message, retryable), and there is no column ``error``. What
    would fail every call (a wrong token, the day's allocation used, a limit of this step reached) fails the bundle.

    With a ``ledger`` each answer is paid once, however often a runner repeats a bundle: it is kept as soon as it
    arrives, by what was asked, or by ``key`` and what was asked. A kill repeats at most the calls in flight. Two steps
    share nothing but a ledger that both name. ``concurrency``, rates and limits hold for each process of the runner.

    Counters (see ``llmdo.transforms.answers.metrics``): rows answered and failed, calls, retries, tokens, cost.

    Args:
        model: PROVIDER/MODEL, or a bare ``@cf/…``.
        prompt: a prompt with fields, as in ``Summarise: {text}``. Without it, rows have what lines of ``llmdo run``
            may have: prompt, messages, text, parameters.
        system: a system prompt, which may have fields.
        embed: the field with the text to embed.
        schema: that answers must match: a JSON schema (a dict or its text), or a pydantic model, dataclass, TypedDict
            or NamedTuple.
        into: the name of the column ``answer`` or ``embedding``; ``error`` is then ``INTO_error``.
        parameters: of the request by OpenAI's names: max_tokens, temperature … From another language they are a row
            or a JSON object as text, as ``prices`` are.
        key: the field whose value names the row in the ledger, so that equal requests of two rows are two answers.
        ledger: ``sqlite:///PATH``, ``r2://BUCKET/PREFIX/``, a folder, or ``none``.
        concurrency: calls in flight at most; refusals lower it. ``"fixed:N"``: they do not.
        rpm, tpm: requests and tokens a minute at most; by default what the provider publishes.
        workers: processes of the runner that share the rates; each uses an equal part.
        lane: ``flex``: calls at half price where the model has it; see ``--lane``.
        max_cost, max_tokens_total: US dollars, and tokens in and out, that the step may spend.
        prices: US dollars for a million tokens by PROVIDER/MODEL: ``{"openai/m": {"input": 1, "output": 2}}``.
        gateway: of Workers AI: id or URL of the AI Gateway; by default the environment's.
        headers: ``NAME=VARIABLE``, sent to OPENAI_BASE_URL with the variable's value where calls are made.
        call_timeout_s: seconds that one try may take.
        deadline_s: seconds for which one request may be refused before its row fails.
        patience_s: seconds without any answer after which waiting rows fail.

    Raises ModelNotFound for a name without a known provider, and ValueError for other wrong arguments.
    """

    model: str
    prompt: str = ""
    system: str = ""
    embed: str = ""
    schema: Any = None
    into: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    ledger: str = NO_LEDGER
    concurrency: int | str = 64
    rpm: float | None = None
    tpm: float | None = None
    workers: int = 1
    lane: Literal["", "flex"] = ""
    max_cost: float | None = None
    max_tokens_total: int | None = None
    prices: Mapping[str, Any] | None = None
    gateway: str | None = None
    headers: Sequence[str] = ()
    call_timeout_s: float = CALL_TIMEOUT_S
    deadline_s: float = THREE_TRIES.deadline_s
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        self._failing: Literal["column", "apart"] | ErrorHandler = "column"
        provider, name = split_model(self.model)
        if self.embed and (self.prompt or self.system or self.schema):
            raise ValueError("embed is for vectors: leave out prompt, system and schema, or embed")
        if self.prompt and (problem := template_problem(self.prompt)):
            raise ValueError(f"prompt {self.prompt!r}: {problem}")
        concurrency = named_concurrency(self.concurrency)
        if not min(self.workers, self.call_timeout_s, self.deadline_s, self.patience_s) > 0:
            raise ValueError("workers, call_timeout_s, deadline_s and patience_s must be above 0")
        if self.lane not in ("", "flex"):
            raise ValueError(f"lane {self.lane!r} does not exist: write flex, or leave it out")
        for header in self.headers:
            check_header(header)
        parameters = given_object("parameters", self.parameters)
        if self.schema is not None:
            self.schema = given_schema(self.schema)
            parameters["response_format"] = {"type": "json_schema", "json_schema": named_schema(self.schema)}
        self.into = self.into or ("embedding" if self.embed else "answer")
        self._error = "error" if self.into in ("answer", "embedding") else f"{self.into}_error"
        self._defaults = Defaults(f"{provider}/{name}", parameters, self.system, self.prompt)
        self._calls = CallSettings(
            concurrency.calls,
            fixed=concurrency.fixed,
            retry=Retry(deadline_s=self.deadline_s),
            rates=Rates(self.rpm, self.tpm),
            workers=self.workers,
            lane=self.lane,
            own=frozenset({provider}),
            kept=LedgerSettings(self.ledger, "same-line" if self.key else "same-request"),
            limits=Limits(self.max_cost, self.max_tokens_total),
            prices=own_prices(given_object("prices", self.prices)) if self.prices else (),
            gateway=self.gateway,
            headers=tuple(self.headers),
            call_timeout_s=self.call_timeout_s,
            patience_s=self.patience_s,
        )

    def with_error_handler(self, handler: ErrorHandler | None) -> AskModel:
        """Sends rows without an answer to Beam's error handler; None: they stay, and have an ``error``."""
        self._failing = handler or "column"
        return self

    def with_exception_handling(self) -> AskModel:
        """Gives rows without an answer apart: ``answers, failures = rows | AskModel(…).with_exception_handling()``."""
        self._failing = "apart"
        return self

    def expand(self, rows: PCollection[Any]) -> Any:
        """Rows → rows with answers; or these and the failures."""
        fields = fields_of_rows(rows.element_type)
        taken = [name for name, _ in fields or ()]
        if fields is not None:
            self._check_named(taken)
        added, apart = self._added(taken), self._failing != "column"
        asking = Asking(
            self._defaults,
            replace(self._calls, run_id=f"AskModel {uuid4().hex}"),  # each time that it is applied, its own
            self.embed,
            self.key,
            self.into,
            "" if apart else self._error,
            self._columns(taken),
            tuple(name for name, _ in added),
        )
        both = rows | f"Ask {self.model}" >> beam.ParDo(_Ask(asking)).with_outputs(WITHOUT_ANSWER, main=_ANSWERS)
        whole: Any = rows.element_type if fields is not None else Any
        if fields is not None:
            answered: Any = RowTypeConstraint.from_fields([*fields, *added])
        else:
            answered = dict[str, Any] if are_dicts(rows.element_type) else Any
        # Each by way of a step of its own: Beam loses what a step emits at the end of a bundle if the next one takes
        # batches, as WriteToParquet does (DoOperation.finish in runners/worker/operations.py flushes too early).
        answers = both[_ANSWERS] | "Answered" >> beam.Map(_as_it_is).with_output_types(answered)
        failures = both[WITHOUT_ANSWER] | "Without an answer" >> beam.Map(_as_it_is).with_output_types(
            failure_type(whole)
        )
        if isinstance(self._failing, ErrorHandler):
            self._failing.add_error_pcollection(failures)
        return (answers, failures) if self._failing == "apart" else answers

    def _check_named(self, taken: Sequence[str]) -> None:
        """Raises ValueError for a field that no row has: every row would fail."""
        named = [("prompt and system", name) for name in sorted(self._defaults.fields)]
        for argument, name in [*named, ("embed", self.embed), ("key", self.key)]:
            if name and name not in taken:
                raise ValueError(
                    f"the rows have no field {name!r}, which is named by {argument}: name one of {', '.join(taken)}"
                )

    def _columns(self, taken: Sequence[str]) -> tuple[Column, ...]:
        return property_columns(self.schema, [*taken, self.into, self._error]) if self.schema is not None else ()

    def _added(self, taken: Sequence[str]) -> list[tuple[str, Any]]:
        """The columns that rows get. Raises ValueError for one that they have."""
        kind: Any = nullable(Sequence[float]) if self.embed else nullable(str)
        added = [(self.into, kind), *((one.column, one.kind) for one in self._columns(taken))]
        if self._failing == "column":
            added.append((self._error, nullable(str)))
        check_free([name for name, _ in added], taken)
        return added


@dataclass(slots=True)
class _Row:
    """A row in work."""

    row: Any
    fields: dict[str, Any]
    prompt: Prompt
    context: WindowedValue


def _as_it_is(row: Any) -> Any:
    return row


class _Ask(beam.DoFn):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def setup(self) -> None:
        self._metrics = InferMetrics()
        calls = self._asking.calls
        with _opening:
            budget, users = _steps.get(calls.run_id) or (Budget(calls.limits, Prices(own=calls.prices)), 0)
            _steps[calls.run_id] = budget, users + 1
            self._budget = budget
            if calls.limits != NO_LIMITS:  # else nobody asks what is left, and counting costs time in each call
                calls = replace(calls, budget=budget)
            self._engine = working_engine(calls)

    def teardown(self) -> None:
        name = self._asking.calls.run_id
        with _opening:
            budget, users = _steps[name]
            _steps[name] = budget, users - 1
            if users == 1:
                del _steps[name]
                close_engines(name)

    def start_bundle(self) -> None:
        self._calls: BundleCalls[_Row] = BundleCalls(self._engine, self._budget.prices)

    def process(
        self, row: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        context, fields = WindowedValue(None, timestamp, (window,)), {}
        try:
            fields = fields_of_row(row)
            if isinstance(row, Mapping):
                check_free(self._asking.added, fields)
            prompt = prompt_of(self._asking, fields, self._engine)
        except LineError as error:
            if isinstance(error, ModelUnusable):
                raise error.with_traceback(None) from None
            yield self._failed(row, fields, context, error)
            return
        self._budget.prices.ask(prompt.provider)  # starts reading prices before they are needed
        one = _Row(row, fields, prompt, context)
        yield from self._made(self._calls.submit(one, prompt.provider, prompt.request))
        yield from self._made(self._calls.ended(wait=False))

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._made(self._calls.all())
        self._metrics.engine(self._engine, now=True)

    def _made(self, ended: Iterable[tuple[_Row, Embedded]]) -> Iterator[Any]:
        for one, result in ended:
            self._metrics.engine(self._engine)
            yield self._row(one, result)
        if self._calls.refused:
            stopped = self._engine.stopped or EngineClosed("the engine was closed: the bundle is tried again")
            raise stopped.with_traceback(None)

    def _row(self, one: _Row, ended: Embedded) -> Any:
        done = ended.done
        if done.error is not None:
            if isinstance(done.error, StopRun) or (isinstance(done.error, ModelUnusable) and not one.prompt.own_model):
                raise done.error.with_traceback(None)  # that of the engine's own calls would hide the sentence
            return self._failed(one.row, one.fields, one.context, done.error)
        response = done.response
        assert response is not None  # noqa: S101  Done has exactly one of the two
        paid = [part for part in ended.parts or (response,) if not part.shared]
        usd = self._budget.prices.cost(one.prompt.provider, one.prompt.request.model, *paid)
        try:
            added = answer_columns(self._asking, response)
        except LineError as error:
            return self._failed(one.row, one.fields, one.context, error)
        self._metrics.answer(Usage() if response.shared else response.usage, usd, done)
        return one.context.with_value(self._with(one.row, one.fields, added))

    def _failed(self, row: Any, fields: Mapping[str, Any], context: WindowedValue, error: ModelError) -> Any:
        self._metrics.failure(error)
        if not self._asking.error:
            return TaggedOutput(WITHOUT_ANSWER, context.with_value(failure_of(row, error)))
        return context.with_value(
            self._with(row, fields, {self._asking.error: f"{type(error).__name__}: {error.message}"})
        )

    def _with(self, row: Any, fields: Mapping[str, Any], added: Mapping[str, Any]) -> Any:
        whole = {**fields, **dict.fromkeys(self._asking.added), **added}
        return whole if isinstance(row, Mapping) else beam.Row(**whole)
