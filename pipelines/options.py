"""What a user may set for a run over files, checked before any work: all that is wrong is said at once."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from llmdo.backends.engine.batches import Mode
from llmdo.backends.engine.recall import Reuse
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S, THREE_TRIES
from llmdo.backends.money.money import NO_LIMITS, Limits
from llmdo.backends.providers import access_of
from llmdo.pipelines.option_types import (
    Calls,
    Concurrency,
    Gateway,
    Header,
    JsonSchema,
    LineModels,
    ModelName,
    ModelRules,
    Template,
    check_header_models,
)
from llmdo.pipelines.runner_options import DataflowOptions, FlinkOptions
from llmdo.settings.environment import MissingSettings, cloudflare_account, r2_access, state_folder
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.field_problems import expected
from llmdo.storage.ledger.ledger import SQLITE_SCHEME
from llmdo.storage.objects.store import R2_SCHEME, Location, locate, locate_folder
from llmdo.storage.runs.members import Apart
from llmdo.transforms.answers.paid_answers import PaidAnswers
from llmdo.transforms.files.batching import Batching
from llmdo.transforms.files.listing import SUFFIXES, Listing
from llmdo.transforms.files.source import Notifications, Source
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.prompts.models import SAME_PROVIDER
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.prompts.templates import fields_of

DEFAULT_MODEL = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"
# After this long Prism's reader hands its range back, so that what it has read can leave the bundle. Seconds.
PRISM_CHECKPOINT = 30.0
# So many bundles read at the same time on Prism.
PRISM_LANES = 4
# So many stages side by side answer lines in each of Flink's slots: while some wait for last calls, others go on.
FLINK_LANES = 8
# A range there goes on as a whole, and no checkpoint is made meanwhile. Bytes.
FLINK_RANGE = 64 << 10

M = TypeVar("M", bound=BaseModel)


class UsageError(Exception):
    """The options do not fit together; ``problems`` has one sentence for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class JsonlOptions(BaseModel):
    """A run over files of prompts. Sizes in bytes, times in seconds.

    Attributes:
        files: local files, folders, glob patterns; or ``input`` (r2://bucket/prefix/); or ``queue`` (id or name).
        retry: instead of these, the error lines in ``output``: those that may be answered now, or all.
        output: r2://bucket/prefix/ or a local folder.
        concurrency: calls in flight at most, for each process, as ``N`` or ``fixed:N``: see Concurrency.
        rpm, tpm: requests and tokens a minute; None is what the provider publishes.
        workers: so many processes call at the same time; each keeps to its part of these rates.
        mode: whether requests are handed over in batches, where model and provider have an API for that.
        patience: how long a service may answer nothing before its calls are given up; None: 600 s, or if ``continuous``
            without an end.
        deadline: how long one request may be refused, or be in a batch, before it is given up there.
        gateway: the id or URL of the AI Gateway that Workers AI is called by; None is what the environment names.
        header: ``NAME=VARIABLE``: headers for OPENAI_BASE_URL, with what the environment's variable holds.
        call_timeout: how long one try of a call may take.
        allow_open_ports: also with a runner that other machines may reach, who can run any program there.
        drain_seconds: how long calls in flight may go on after SIGTERM or Ctrl-C.
        prompt: a template of what to ask, with fields of the lines; then a line is any object that has these fields.
        model_for: ``GLOB=PROVIDER/MODEL``: the model for files whose key fits, the first that does.
        line_models: which models lines may name: same-provider (as the model that they would get), any, none, globs.
        line_parameters: with ``prompt``, a line's ``model``, ``system`` and parameters count too, as without it.
        response_schema: the JSON Schema that answers must fit.
        max_cost, max_tokens_total: US dollars and tokens that this run may spend, over all its restarts.
        continuous: goes on until it is stopped; then ``max_restarts`` failures in a row without progress end it.
        configuration: the fingerprint of what decides an answer: model, parameters, templates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = ()
    input: str | None = None
    queue: str | None = None
    retry: Literal["retryable", "all"] | None = None
    output: str
    model: ModelName = DEFAULT_MODEL
    runner: Literal["direct", "prism", "flink", "dataflow"] = "direct"
    flink: FlinkOptions = FlinkOptions()
    dataflow: DataflowOptions = DataflowOptions()
    prefix: str = ""
    suffixes: tuple[str, ...] = SUFFIXES
    system: str = ""
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=5)
    prompt: Template = ""
    model_for: ModelRules = ()
    line_models: LineModels = SAME_PROVIDER
    line_parameters: bool = False
    response_schema: JsonSchema | None = None
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_tokens_total: int | None = Field(default=None, ge=1)
    concurrency: Calls = Concurrency(64)
    rpm: float | None = Field(default=None, gt=0)
    tpm: float | None = Field(default=None, gt=0)
    workers: int = Field(default=1, ge=1)
    mode: Mode = "sync"
    deadline: float = Field(default=THREE_TRIES.deadline_s, gt=0, allow_inf_nan=False)
    patience: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gateway: Gateway | None = None
    header: tuple[Header, ...] = ()
    call_timeout: float = Field(default=CALL_TIMEOUT_S, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=100, ge=1, le=10_000)
    batch_seconds: float = Field(default=60.0, gt=0)
    range_bytes: int = Field(default=4 << 20, ge=1)
    max_line_bytes: int = Field(default=1 << 20, ge=1)
    max_file_bytes: int | None = Field(default=None, ge=1)
    poll_seconds: float = Field(default=0.5, ge=0.25)
    ledger: str | None = None
    reuse: Reuse = "same-line"
    prism_location: str | None = None
    allow_open_ports: bool = False
    drain_seconds: float = Field(default=60.0, ge=0)
    continuous: bool = False
    max_restarts: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _places(self) -> JsonlOptions:
        given = [name for name in ("files", "input", "queue", "retry") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) if given else "none"
            raise ValueError(f"say where the prompts are by one of FILES, --input, --queue ({said} given)")
        if self.continuous and (self.queue is None or self.runner == "direct"):
            raise ValueError("a continuous run needs --queue, and --runner prism: direct ends its batches with the run")
        if self.line_parameters and not self.prompt:
            raise ValueError(
                "--line-parameters goes with --prompt: without a template a line's parameters always count"
            )
        if self.apart and self.limits != NO_LIMITS:
            raise ValueError(
                "--max-cost and --max-tokens-total are counted in one process, and the steps would run in others: "
                "use --runner direct, prism, or flink with --environment-type LOOPBACK"
            )
        if self.input is not None and not self.input.startswith(R2_SCHEME):
            raise ValueError(f"--input {self.input}: write r2://BUCKET/PREFIX, or give local files as FILES")
        check_header_models(self.header, self.models, self.line_models)
        for place in (self.output, *((self.input,) if self.input else ())):
            try:
                locate(place)
            except InvalidLocation as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def output_location(self) -> Location:
        """Where the output goes; its key ends in '/' or is empty."""
        return locate_folder(self.output)

    @property
    def source(self) -> Source:
        """Where the prompts are; ``queue`` must be an id by now."""
        if self.queue is not None:
            return Notifications(self.queue, self.prefix, self.suffixes, self.poll_seconds)
        return Listing((self.input,) if self.input else self.files, self.suffixes)

    @property
    def defaults(self) -> Defaults:
        """Model and parameters for lines that do not say otherwise."""
        schema = self.response_schema
        parameters = {
            **self._parameters,
            **({"response_format": {"type": "json_schema", "json_schema": _named(schema)}} if schema else {}),
        }
        return Defaults(
            self.model, parameters, self.system, self.prompt, self._models, self.line_models, self.line_parameters
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the options name: ``model``, then those of ``model_for``."""
        return tuple(dict.fromkeys((self.model, *(model for _, model in self._models))))

    @property
    def _models(self) -> tuple[tuple[str, str], ...]:
        rules = (rule.rpartition("=") for rule in self.model_for)
        return tuple((pattern, model) for pattern, _, model in rules)

    @property
    def _parameters(self) -> dict[str, Any]:
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def limits(self) -> Limits:
        """What the run may spend."""
        return Limits(self.max_cost, self.max_tokens_total)

    @property
    def reading(self) -> Reading:
        """How files are read; on Prism and Dataflow nothing leaves a bundle before its end, so the reader ends it."""
        checkpoint = PRISM_CHECKPOINT if self.runner in ("prism", "dataflow") else None
        planned = self.runner == "flink" and not self.flink.flink_sdf
        return Reading(
            range_bytes=min(self.range_bytes, FLINK_RANGE) if planned else self.range_bytes,
            max_line_bytes=self.max_line_bytes,
            checkpoint_seconds=checkpoint,
            max_file_bytes=self.max_file_bytes,
            planned=planned,
            lanes=FLINK_LANES if planned else PRISM_LANES,
        )

    @property
    def apart(self) -> bool:
        """Whether the steps run in other processes than this one."""
        return self.runner == "dataflow" or (self.runner == "flink" and self.flink.environment != "LOOPBACK")

    def members(self, run_id: str) -> Apart | None:
        """How other processes take part in a run; None where there are none."""
        return Apart(run_id, self.output_location, self.configuration) if self.apart else None

    @property
    def calls_in_flight(self) -> int:
        """For each process that calls: here all of Flink's slots share one, where they are not in others."""
        slots = self.flink.parallelism if self.runner == "flink" and not self.apart else 1
        return self.concurrency.calls * slots

    @property
    def patience_s(self) -> float:
        """``patience``, with its default."""
        return self.patience or (math.inf if self.continuous else PATIENCE_S)

    @property
    def rates(self) -> Rates:
        """How many calls and tokens a minute the user allows."""
        return Rates(self.rpm, self.tpm)

    @property
    def processes(self) -> int:
        """How many processes share the rates: on Dataflow as many as it may start machines, unless more are said."""
        return max(self.workers, self.dataflow.max_num_workers) if self.runner == "dataflow" else self.workers

    @property
    def batching(self) -> Batching:
        """How big shards get."""
        return Batching(self.batch_size, self.batch_seconds)

    @property
    def paid(self) -> PaidAnswers:
        """The ledger: ``ledger``, or by default a database in a local output, else one in the user's state folder."""
        return PaidAnswers(self.ledger or default_ledger(self.output_location), self.reuse)

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides an answer. An option that is not set is not there: outputs made before it keep their
        fingerprint.
        """
        decisive = {"model": self.model, "parameters": self._parameters, "system": self.system}
        # Before there were templates, a system prompt was never filled in, whatever its braces.
        fields = sorted(fields_of(self.system))
        later = {
            "system_fields": fields,
            "prompt": self.prompt,
            "line_parameters": self.line_parameters,
            "model_for": list(self.model_for),
            "schema": self.response_schema,
        }
        return decisive | {name: value for name, value in later.items() if value}

    @property
    def configuration(self) -> str:
        """The fingerprint of what decides an answer."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:16]


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI wants a schema: wrapped, with a name of letters, digits, _ and -; not strict, which not all can be."""
    name = re.sub(r"[^\w-]+", "_", str(schema.get("title") or "answer"), flags=re.ASCII)[:64]
    return {"name": name, "schema": schema}


def default_ledger(output: Location) -> str:
    """``sqlite:///PATH``: below a local output, else in $XDG_STATE_HOME/llmdo, one for each output in R2."""
    if not output.bucket:
        return f"{SQLITE_SCHEME}{output.store_url}/_ledger.sqlite"
    # Buckets of two accounts may share their names.
    place = f"{r2_access().endpoint} {output.store_url}/{output.key}"
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return f"{SQLITE_SCHEME}{state_folder() / f'ledger-{name}.sqlite'}"


def check_options(**given: Any) -> JsonlOptions:
    """Validates options and the environment that they need. Raises UsageError with everything that is wrong."""
    model = str(given.get("model") or DEFAULT_MODEL)
    output = str(given.get("output") or "")
    reads: list[Callable[[], object] | None] = []
    if given.get("queue") or given.get("input") or output.startswith(R2_SCHEME):
        reads.append(r2_access)
    if given.get("queue"):
        reads.append(cloudflare_account)
    models = [model, *(str(rule).rpartition("=")[2] for rule in given.get("model_for") or ())]
    return checked(JsonlOptions, given, [*reads, *map(access_of, models)])


def checked(kind: type[M], given: Mapping[str, Any], reads: Iterable[Callable[[], object] | None]) -> M:
    """Options of this kind; ``reads`` are what reads the environment that they need.

    Raises UsageError with everything that is wrong with both.
    """
    problems: list[str] = []
    options: M | None = None
    try:
        options = kind(**given)
    except ValidationError as error:
        problems += [_sentence(detail) for detail in error.errors()]
    for read in dict.fromkeys(reads):
        try:
            if read is not None:
                read()
        except MissingSettings as missing:
            problems += [p for p in missing.problems if p not in problems]
    if problems or options is None:
        raise UsageError(problems)
    return options


def _sentence(detail: ErrorDetails) -> str:
    message = expected(detail)
    if not detail["loc"]:
        return message
    if detail["loc"][0] == "response_schema":
        return f"--schema: {message}"
    if detail["loc"][0] == "model_for":
        return f"--model-for: {message}"
    name = detail["loc"][1] if detail["loc"][0] in ("flink", "dataflow") else detail["loc"][0]
    # What somebody wrote in the place of a secret's place is likely the secret.
    said = str(detail["input"]).partition("=")[0] if name in ("env_from", "header") else detail["input"]
    return f"--{str(name).replace('_', '-')} {said!r}: {message}"
