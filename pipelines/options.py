"""Options of a run over files, checked before any work: everything that is wrong is reported at once."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmdo.backends.engine.settings import CallSettings, Mode, Reuse
from llmdo.backends.limits.retry import THREE_TRIES, Retry
from llmdo.backends.money.money import NO_LIMITS
from llmdo.backends.providers import access_of
from llmdo.backends.responses import VectorFormat
from llmdo.pipelines.option_types import (
    Concurrency,
    JsonSchema,
    LineModels,
    ModelName,
    ModelRules,
    Template,
    check_header_models,
)
from llmdo.pipelines.run_options import CallsInFlight, GatewayName, MaxTokens, PollSeconds, RunOptions, Temperature
from llmdo.pipelines.runner_options import DataflowOptions, FlinkOptions
from llmdo.pipelines.shown import ADVANCED, INPUT, LEDGER, MODEL, OUTPUT, RATE
from llmdo.pipelines.usage import checked
from llmdo.settings.environment import cloudflare_account, r2_access
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, Location, locate, locate_folder
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.files.batching import DEFAULT_BATCHING, Batching
from llmdo.transforms.files.source import Listing, Notifications, Source
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.prompts.models import SAME_PROVIDER
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.prompts.templates import fields_of

DEFAULT_MODEL = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"
# After this long Prism's reader hands its range back, so that what it has read can leave the bundle. Seconds.
PRISM_CHECKPOINT = 30.0
# Bundles that read at the same time on Prism.
PRISM_LANES = 4
# Answering stages side by side in each of Flink's slots: while some wait for their last calls, others continue.
FLINK_LANES = 8
# A typing error must not start a thousand processes of 130 MB.
MOST_PROCESSES = 64
# Flink makes no checkpoint within a range. Bytes.
FLINK_RANGE = 64 << 10


class JsonlOptions(RunOptions):
    """A run over files of prompts.

    Attributes:
        files, input, queue, retry: where the prompts are; exactly one of them is set. ``retry``: the error lines in
            ``output``, those that may be answered now, or all.
        model_for: the first rule that matches a file's key decides.
        response_schema: the JSON Schema that answers must match.
    """

    ENDLESS_PATIENCE_S = math.inf

    files: Annotated[
        tuple[str, ...], INPUT("Local files, folders or glob patterns; - is standard input.", positional=True)
    ] = ()
    input: Annotated[str | None, INPUT("r2://BUCKET/PREFIX/ to list.")] = None
    queue: Annotated[str | None, INPUT("Queue of R2 events, id or name; default LLMDO_QUEUE.")] = None
    prefix: Annotated[str, INPUT("Only objects below this prefix (with --queue).")] = ""
    retry: Literal["retryable", "all"] | None = None
    output: Annotated[str, OUTPUT("Where answers go: r2://BUCKET/PREFIX/ or a folder.")]
    model: Annotated[ModelName, MODEL("PROVIDER/MODEL for lines that name none.")] = DEFAULT_MODEL
    prompt: Annotated[Template, MODEL("What to ask of each line, with its fields: 'Summarise: {text}'.")] = ""
    system: Annotated[
        str, MODEL("File with a system prompt for lines that have none (ask takes its text).", file="text")
    ] = ""
    model_for: Annotated[
        ModelRules,
        MODEL("GLOB=MODEL for files whose key matches; may be repeated, the first match wins.", unquoted=True),
    ] = ()
    line_models: Annotated[
        LineModels,
        MODEL(
            "Which models lines may name: same-provider (as the model that they would get), any, none, or "
            "globs of PROVIDER/MODEL separated by commas, also together with same-provider."
        ),
    ] = SAME_PROVIDER
    line_parameters: Annotated[
        bool, MODEL("With --prompt, use a line's model, system and parameters, too; else they are its data.")
    ] = False
    response_schema: Annotated[
        JsonSchema | None,
        MODEL("File with a JSON Schema that answers must match.", name="--schema", file="json", unquoted=True),
    ] = None
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    concurrency: CallsInFlight = Concurrency(64)
    workers: Annotated[
        int, Field(ge=1), RATE("Number of processes sharing --rpm and --tpm; each uses an equal share.")
    ] = 1
    processes: Annotated[
        int,
        Field(ge=1, le=MOST_PROCESSES),
        RATE("Processes of this machine that share the work and all limits; each takes some 130 MB."),
    ] = 1
    mode: Annotated[
        Mode,
        RATE(
            "sync: one call a request; batch: the provider's asynchronous batch API, if it has one; auto: "
            "batch where it pays."
        ),
    ] = "sync"
    deadline: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        RATE("Seconds for which one request may be refused, or wait in a batch, before it is given up."),
    ] = THREE_TRIES.deadline_s
    gateway: GatewayName = None
    batch_size: Annotated[int, Field(ge=1, le=10_000), OUTPUT("Lines in a shard at most.")] = DEFAULT_BATCHING.size
    batch_seconds: Annotated[
        float, Field(gt=0), OUTPUT("Seconds after which a shard is written even if it is not full.")
    ] = DEFAULT_BATCHING.seconds
    vectors: Annotated[
        VectorFormat,
        OUTPUT("How vectors are written: float, as numbers, or base64, as 32-bit floats packed in base64."),
    ] = "float"
    range_bytes: Annotated[int, Field(ge=1), ADVANCED("Bytes of a file that one worker reads.")] = 4 << 20
    max_line_bytes: Annotated[int, Field(ge=1), INPUT("Bytes of a line at most; a longer one becomes an error.")] = (
        1 << 20
    )
    max_file_bytes: Annotated[
        int | None, Field(ge=1), INPUT("Bytes of a file at most, uncompressed; a longer one is not answered.")
    ] = None
    poll_seconds: PollSeconds = 0.5
    reuse: Annotated[Reuse, LEDGER("Whose answers may be reused: those of the same-line, or of the same-request.")] = (
        "same-line"
    )
    runner: Annotated[
        Literal["direct", "prism", "flink", "dataflow"], ADVANCED("direct, prism, flink or dataflow.")
    ] = "direct"
    flink: FlinkOptions = FlinkOptions()
    dataflow: DataflowOptions = DataflowOptions()

    @model_validator(mode="after")
    def _several_processes(self) -> JsonlOptions:
        if self.processes == 1:
            return self
        here = "prism" if self.continuous else "direct"
        why_not = {
            f"it is for --runner {here}; Flink has --parallelism, Dataflow --max-num-workers": self.runner != here,
            "batches are polled by one process: use --mode sync": self.mode != "sync",
            "two processes could pay for the same request: use --reuse same-line": self.reuse != "same-line",
        }
        problems = [why for why, applies in why_not.items() if applies]
        if problems:
            raise ValueError(f"--processes {self.processes}: {'; '.join(problems)}")
        return self

    @model_validator(mode="after")
    def _places(self) -> JsonlOptions:
        given = [name for name in ("files", "input", "queue", "retry") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) if given else "none"
            raise ValueError(f"name the prompts with exactly one of FILES, --input, --queue ({said} given)")
        if self.continuous and (self.queue is None or self.runner == "direct"):
            raise ValueError("a continuous run needs --queue, and --runner prism: direct ends its batches with the run")
        if self.line_parameters and not self.prompt:
            raise ValueError("--line-parameters needs --prompt: without a template a line's parameters always count")
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
            return Notifications(self.queue, self.prefix, self.poll_seconds)
        return Listing((self.input,) if self.input else self.files)

    @property
    def defaults(self) -> Defaults:
        """Model and parameters for lines that set none."""
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
            at_once=self.runner == "direct" and not self.continuous,
            lanes=FLINK_LANES if planned else PRISM_LANES,
        )

    @property
    def apart(self) -> bool:
        """Whether the steps run in other processes than this one."""
        return self.runner == "dataflow" or (self.runner == "flink" and self.flink.environment != "LOOPBACK")

    @property
    def calls_in_flight(self) -> int:
        """Calls in flight of each calling process. All of Flink's slots share this one, unless they run in others."""
        slots = self.flink.parallelism if self.runner == "flink" and not self.apart else 1
        return self.concurrency.calls * slots

    @property
    def rates_shared_by(self) -> int:
        """Number of processes that share the rates; on Dataflow at least its maximum of machines."""
        return max(self.workers, self.dataflow.max_num_workers) if self.runner == "dataflow" else self.workers

    @property
    def batching(self) -> Batching:
        """The size of shards."""
        return Batching(self.batch_size, self.batch_seconds)

    @property
    def kept(self) -> LedgerSettings:
        """See RunOptions."""
        return LedgerSettings(self.ledger_url, self.reuse)

    @property
    def calls(self) -> CallSettings:
        """See RunOptions."""
        calls = super().calls
        return replace(
            calls,
            window=self.calls_in_flight,
            retry=Retry(deadline_s=self.deadline),
            workers=self.rates_shared_by,
            mode=self.mode,
            gateway=self.gateway or calls.gateway,
        )

    @property
    def decisive(self) -> dict[str, Any]:
        """What affects answers. Options that are not set are left out: outputs made before they existed keep their
        fingerprint.
        """
        decisive = {"model": self.model, "parameters": self._parameters, "system": self.system}
        # Older versions never filled in system prompts, whatever braces they had.
        fields = sorted(fields_of(self.system))
        later = {
            "system_fields": fields,
            "prompt": self.prompt,
            "line_parameters": self.line_parameters,
            "model_for": list(self.model_for),
            "schema": self.response_schema,
            "vectors": "" if self.vectors == "float" else self.vectors,
        }
        return decisive | {name: value for name, value in later.items() if value}

    @property
    def configuration(self) -> str:
        """The fingerprint of what affects answers."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:16]


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as OpenAI's API takes it: wrapped, with a name of letters, digits, _ and -; not strict: few can be."""
    name = re.sub(r"[^\w-]+", "_", str(schema.get("title") or "answer"), flags=re.ASCII)[:64]
    return {"name": name, "schema": schema}


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
