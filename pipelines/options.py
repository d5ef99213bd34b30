"""Options of a run over files, checked before any work: everything that is wrong is reported at once."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmdo.backends.engine.settings import CallSettings, Reuse
from llmdo.backends.json_mode.response_format import named_schema
from llmdo.backends.limits.concurrency_limit import Concurrency
from llmdo.backends.limits.retry import THREE_TRIES, Retry
from llmdo.backends.providers import access_of, has_own_inputs
from llmdo.backends.responses import VectorFormat
from llmdo.pipelines.media_options import MaxMediaBytes, MediaFrom, media_settings
from llmdo.pipelines.option_types import (
    JsonSchema,
    LineModels,
    ModelName,
    ModelRules,
    Template,
    all_files,
    check_header_models,
)
from llmdo.pipelines.run_options import (
    BY_ENVIRONMENT,
    CallLane,
    CallMode,
    CallsInFlight,
    Deadline,
    Detach,
    GatewayName,
    MaxTokens,
    PollSeconds,
    ReadyIn,
    RunOptions,
    SystemPrompt,
    Temperature,
    check_batches,
    later_option,
    with_model,
    without,
)
from llmdo.pipelines.runner_options import DataflowOptions, FlinkOptions, reading_on
from llmdo.pipelines.shown import ADVANCED, INPUT, MODEL, OUTPUT, PACE, RESUME
from llmdo.pipelines.usage import checked
from llmdo.settings.environment import cloudflare_account, default_gateway, r2_access
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, Location, locate, locate_folder
from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.answers.batch_records import OutputBatches
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.files.batching import DEFAULT_BATCHING, Batching
from llmdo.transforms.files.source import Listing, Notifications, Source
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.media import MAX_MEDIA_BYTES
from llmdo.transforms.prompts.models import SAME_PROVIDER
from llmdo.transforms.prompts.parse import Defaults
from llmdo.transforms.prompts.templates import fields_of
from llmdo.transforms.run import Run
from llmdo.transforms.tables.needed_columns import NeededColumns

# A typing error must not start a thousand processes of 130 MB.
MOST_PROCESSES = 64


class JsonlOptions(RunOptions):
    """A run over files of prompts.

    Attributes:
        files, queue, retry: where the prompts are; exactly one of them is set.
        retry: the error lines in ``output``, those that may be answered now, or all.
        input: another name of ``files``, empty from then on.
        response_schema: the JSON Schema that answers must match.
    """

    ENDLESS_PATIENCE_S = math.inf

    files: Annotated[
        tuple[str, ...],
        INPUT("Files, folders, glob patterns, r2://BUCKET/PREFIX/; - is standard input.", positional=True),
    ] = ()
    input: Annotated[tuple[str, ...], INPUT("The same as FILES; may be repeated.")] = ()
    queue: Annotated[str | None, INPUT("Queue of R2 events, id or name; default LLMDO_QUEUE.")] = None
    prefix: Annotated[str, INPUT("Only objects below this prefix (with --queue).")] = ""
    retry: Literal["retryable", "all"] | None = None
    output: Annotated[str, OUTPUT("Where answers go: r2://BUCKET/PREFIX/ or a folder.", short="-o")]
    model: Annotated[ModelName, MODEL("PROVIDER/MODEL for lines that name none.", short="-m", default=BY_ENVIRONMENT)]
    prompt: Annotated[
        Template, MODEL("What to ask of each line, with its fields: 'Summarise: {text}'; or @FILE.", file="text")
    ] = ""
    system: SystemPrompt = ""
    model_for: Annotated[
        ModelRules,
        MODEL("GLOB=MODEL for files whose key matches; may be repeated, the first match wins.", unquoted=True),
    ] = ()
    line_models: Annotated[
        LineModels,
        MODEL(
            "Which models lines may name: same-provider (as the model that they would get), any, none, globs of "
            "PROVIDER/MODEL separated by commas, or ignore, which asks the run's own model whatever lines name."
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
        int, Field(ge=1), PACE("Number of processes sharing --rpm and --tpm; each uses an equal share.")
    ] = 1
    processes: Annotated[
        int,
        Field(ge=1, le=MOST_PROCESSES),
        PACE("Processes of this machine that share the work and all limits; each takes some 130 MB."),
    ] = 1
    mode: CallMode = "sync"
    detach: Detach = False
    lane: CallLane = None
    deadline: Deadline = THREE_TRIES.deadline_s
    ready_by: ReadyIn = None
    gateway: GatewayName = None
    batch_size: Annotated[int, Field(ge=1, le=10_000), OUTPUT("Lines in a shard at most.")] = DEFAULT_BATCHING.size
    batch_seconds: Annotated[
        float, Field(gt=0), OUTPUT("Seconds after which a shard is written even if it is not full.")
    ] = DEFAULT_BATCHING.seconds
    vectors: Annotated[
        VectorFormat,
        OUTPUT("How vectors are written: float, as numbers, or base64, as 32-bit floats packed in base64."),
    ] = "float"
    notify_queue: Annotated[
        str | None, OUTPUT("Queue, id or name, that gets a message for each file that is done or stale.")
    ] = None
    range_bytes: Annotated[int, Field(ge=1), ADVANCED("Bytes of a file that one worker reads.")] = 4 << 20
    format: Annotated[
        FormatName | None,
        INPUT("Format of the files, whatever their names end in; of folders, only files with its endings are taken."),
    ] = None
    max_line_bytes: Annotated[int, Field(ge=1), INPUT("Bytes of a line at most; a longer one becomes an error.")] = (
        1 << 20
    )
    max_file_bytes: Annotated[
        int | None, Field(ge=1), INPUT("Bytes of a file at most, uncompressed; a longer one is not answered.")
    ] = None
    media_from: MediaFrom = ()
    max_media_bytes: MaxMediaBytes = MAX_MEDIA_BYTES
    poll_seconds: PollSeconds = 0.5
    reuse: Annotated[Reuse, RESUME("Whose answers may be reused: those of the same-line, or of the same-request.")] = (
        "same-line"
    )
    runner: Annotated[Literal["direct", "prism", "flink", "dataflow"], ADVANCED("Where the steps run.", short="-r")] = (
        "direct"
    )
    flink: FlinkOptions = FlinkOptions()
    dataflow: DataflowOptions = DataflowOptions()

    @model_validator(mode="before")
    @classmethod
    def _all_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "files": all_files(given), "input": ()}

    @model_validator(mode="after")
    def _places(self) -> JsonlOptions:
        later = later_option(self.mode, self.lane, bool(self.ready_by))
        self._check_processes(later)
        check_batches(later, self.runner, self.ledger, self.detach, bool(self.ready_by), ends=not self.continuous)
        given = [name for name in ("files", "queue", "retry") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"name the prompts: either FILES, or --queue ({'both' if given else 'neither'} given)")
        if self.continuous and (self.queue is None or self.runner == "direct"):
            raise ValueError("a continuous run needs --queue, and --runner prism: direct ends its batches with the run")
        if self.line_parameters and not self.prompt:
            raise ValueError("--line-parameters needs --prompt: without a template a line's parameters always count")
        if self.apart and (self.max_cost or self.max_tokens_total):
            raise ValueError(
                "--max-cost and --max-tokens-total are counted in one process, and the steps would run in others: "
                "use --budget, or --runner direct, prism, or flink with --environment-type LOOPBACK"
            )
        check_header_models(self.header, self.models, self.line_models)
        for place in (self.output, *(name for name in self.files if name.startswith(R2_SCHEME))):
            try:
                locate(place)
            except InvalidLocation as error:
                raise ValueError(str(error)) from None
        return self

    def _check_processes(self, later: str) -> None:
        here = "prism" if self.continuous else "direct"
        why_not = {
            f"it is for --runner {here}; Flink has --parallelism, Dataflow --max-num-workers": self.runner != here,
            f"{later} is polled by one process: {without(later)}": bool(later),
            "two processes could pay for the same request: use --reuse same-line": self.reuse != "same-line",
        }
        problems = [why for why, applies in why_not.items() if applies]
        if problems and self.processes > 1:
            raise ValueError(f"--processes {self.processes}: {'; '.join(problems)}")

    def run(self, run_id: str) -> Run:
        """See RunOptions."""
        return replace(super().run(run_id), notify=self.notify_queue or "")

    @property
    def command(self) -> str:
        """See RunOptions."""
        return "retry" if self.retry else "stream" if self.continuous else "run"

    @property
    def local_files(self) -> tuple[str, ...]:
        """Those of the files that are on this machine."""
        return tuple(name for name in self.files if not name.startswith(R2_SCHEME))

    @property
    def output_location(self) -> Location:
        """Where the output goes; its key ends in '/' or is empty."""
        return locate_folder(self.output)

    @property
    def source(self) -> Source:
        """Where the prompts are; ``queue`` must be an id by now."""
        if self.queue is not None:
            return Notifications(self.queue, self.prefix, self.poll_seconds, self.format or "")
        return Listing(self.files, self.format or "")

    @property
    def defaults(self) -> Defaults:
        """Model and parameters for lines that set none."""
        schema = self.response_schema
        parameters = {
            **self._parameters,
            **({"response_format": {"type": "json_schema", "json_schema": named_schema(schema)}} if schema else {}),
        }
        return Defaults(
            self.model, parameters, self.system, self.prompt, self._models, self.line_models, self.line_parameters
        )

    @property
    def needed_columns(self) -> NeededColumns:
        """What a table must have so that its rows can be asked."""
        own = any(has_own_inputs(name.partition("/")[0]) for name in self.models)
        return NeededColumns(self.defaults.fields, asking=not own)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the options name: ``model``, then those of ``model_for``."""
        return tuple(dict.fromkeys((self.model, *(model for _, model in self._models))))

    @property
    def _models(self) -> tuple[tuple[str, str], ...]:
        return tuple((rule.rpartition("=")[0], rule.rpartition("=")[2]) for rule in self.model_for)

    @property
    def _parameters(self) -> dict[str, Any]:
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def reading(self) -> Reading:
        """How files are read."""
        given = Reading(
            range_bytes=self.range_bytes, max_line_bytes=self.max_line_bytes, max_file_bytes=self.max_file_bytes
        )
        planned = self.runner == "flink" and not self.flink.flink_sdf
        return reading_on(self.runner, given, planned=planned, continuous=self.continuous)

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
        return replace(
            super().calls,
            window=self.calls_in_flight,
            retry=Retry(deadline_s=self.deadline),
            workers=self.rates_shared_by,
            detached=self.detach,
            batches=OutputBatches(self.output_location, self.ledger_url),
            mode="batch" if self.ready_by else self.mode,
            ready_by=self.ready_by,
            lane=self.lane or "",
            gateway=self.gateway or default_gateway(),
            media=media_settings(self.media_from, self.files, self.max_media_bytes),
        )

    @property
    def decisive(self) -> dict[str, Any]:
        """What affects answers. Options that are not set are left out: outputs made before they existed keep their
        fingerprint.
        """
        decisive = {"model": self.model, "parameters": self._parameters, "system": self.system}
        # Older versions never filled in system prompts, whatever braces they had.
        later = {
            "system_fields": sorted(fields_of(self.system)),
            "prompt": self.prompt,
            "line_parameters": self.line_parameters,
            "model_for": list(self.model_for),
            "schema": self.response_schema,
            "vectors": "" if self.vectors == "float" else self.vectors,
            "format": self.format,
        }
        return decisive | {name: value for name, value in later.items() if value}

    @property
    def configuration(self) -> str:
        """The fingerprint of what affects answers."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:16]


def check_options(kind: type[JsonlOptions] = JsonlOptions, /, **given: Any) -> JsonlOptions:
    """Validates options and the environment that they need. Raises UsageError with everything that is wrong."""
    reads = with_model(given)
    places = (*all_files(given), *(given.get("media_from") or ()), given.get("output") or "")
    if given.get("queue") or any(str(place).startswith(R2_SCHEME) for place in places):
        reads.append(r2_access)
    if given.get("queue") or given.get("notify_queue"):
        reads.append(cloudflare_account)
    models = (str(rule).rpartition("=")[2] for rule in given.get("model_for") or ())
    return checked(kind, given, [*reads, *map(access_of, models)])
