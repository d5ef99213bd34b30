"""The command line's arguments that several commands share; their defaults are those of the options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.runner_options import DataflowOptions, FlinkOptions
from llmdo.pipelines.usage import UsageError

F = TypeVar("F", bound=Callable[..., Any])

Output = Annotated[str, typer.Option(help="Where answers go: r2://BUCKET/PREFIX/ or a folder.")]
Files = Annotated[list[str] | None, typer.Argument(help="Local files, folders or glob patterns; - is standard input.")]
Input = Annotated[str | None, typer.Option(help="r2://BUCKET/PREFIX/ to list.")]
Queue = Annotated[str | None, typer.Option(help="Queue of R2 events, id or name; default LLMDO_QUEUE.")]
Model = Annotated[str, typer.Option(help="PROVIDER/MODEL for lines that name none.")]
Prefix = Annotated[str, typer.Option(help="Only objects below this prefix (with --queue).")]
System = Annotated[
    Path | None, typer.Option(help="File with a system prompt (of ask it is text), for lines that have none.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of an answer at most.")]
Temperature = Annotated[float | None, typer.Option(help="0 to 5.")]
Prompt = Annotated[str, typer.Option(help="What to ask of each line, with its fields: 'Summarise: {text}'.")]
ModelFor = Annotated[list[str] | None, typer.Option(help="GLOB=MODEL for files whose key fits; may be repeated.")]
LineModels = Annotated[
    str,
    typer.Option(
        help="Which models lines may name: same-provider (as the model that they would get), any, none, or globs of "
        "PROVIDER/MODEL with commas between them, also beside same-provider."
    ),
]
LineParameters = Annotated[
    bool,
    typer.Option(
        "--line-parameters",
        help="With --prompt, a line's model, system and parameters count too; else they are its data.",
    ),
]
Schema = Annotated[Path | None, typer.Option(help="File with a JSON Schema that answers must fit.")]
MaxCost = Annotated[float | None, typer.Option(help="US dollars at most; the run stops before it could pass them.")]
MaxTokensTotal = Annotated[int | None, typer.Option(help="Tokens of all calls at most, in and out; likewise.")]
Concurrency = Annotated[str, typer.Option(help="Calls in flight at most: N, fewer while refused; or fixed:N.")]
Rpm = Annotated[
    float | None,
    typer.Option(
        help="Requests a minute at most, to each model. By default what the provider publishes: at Cloudflare's public "
        "API that of the model or its task (text generation: 300, frontier models 20); at other addresses none."
    ),
]
Tpm = Annotated[float | None, typer.Option(help="Tokens a minute at most, in and out; by default no limit.")]
Workers = Annotated[int, typer.Option(help="So many processes share the rates; each keeps to its part.")]
CallMode = Annotated[
    str,
    typer.Option(
        "--mode", help="sync: one call a request; batch: the asynchronous batch API, if any; auto: where that pays."
    ),
]
Deadline = Annotated[float, typer.Option(help="Seconds for which one request may be refused, or wait in a batch.")]
Patience = Annotated[
    float | None,
    typer.Option(
        help="Seconds for which a service may answer nothing, while calls pause, before the run stops and leaves the "
        "lines open; default 600, of stream no end."
    ),
]
Gateway = Annotated[
    str | None, typer.Option(help="AI Gateway for Workers AI, its id or its URL; default LLMDO_GATEWAY.")
]
Header = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=VARIABLE: a header for OPENAI_BASE_URL, with what the environment's variable holds; may be repeated."
    ),
]
CallTimeout = Annotated[
    float, typer.Option(help="Seconds that one try of a call may take; after two such tries the line ends as an error.")
]
BatchSize = Annotated[int, typer.Option(help="Lines in a shard at most.")]
BatchSeconds = Annotated[float, typer.Option(help="Seconds until a shard is written anyway.")]
RangeBytes = Annotated[int, typer.Option(help="Bytes of a file that one worker reads.")]
MaxLineBytes = Annotated[int, typer.Option(help="A longer line ends as an error.")]
MaxFileBytes = Annotated[int | None, typer.Option(help="A file that is longer, uncompressed, is not answered.")]
PollSeconds = Annotated[float, typer.Option(help="Seconds between pulls of the queue.")]
Ledger = Annotated[
    str | None,
    typer.Option(help="Keeps answers as they arrive: sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, or none."),
]
Reuse = Annotated[str, typer.Option(help="Whose answer may be taken: same-line or same-request.")]
DrainSeconds = Annotated[float, typer.Option(help="Seconds that calls in flight may go on after Ctrl-C or SIGTERM.")]
MaxRestarts = Annotated[
    int,
    typer.Option(help="Failures in a row without progress before it gives up; those of R2 not answering do not count."),
]
PrismLocation = Annotated[str | None, typer.Option(help="Path of the Prism binary.")]
AllowOpenPorts = Annotated[
    bool,
    typer.Option(
        "--allow-open-ports", help="Accept a runner that other machines may reach: they can run any program here."
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(min=0, help="Answers to print at the end; default 3 on a terminal, else none: a log would keep them."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check every line, estimate tokens, cost and time; no call.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and no progress.")]


def default(name: str, options: type[BaseModel] = JsonlOptions) -> Any:
    """The default of an option; what the command line takes as text is given as text."""
    value = options.model_fields[name].default
    return str(value) if name == "concurrency" else value


def takes(*holders: Callable[..., None]) -> Callable[[F], F]:
    """Gives a command, which takes ``**given``, the parameters of ``holders`` behind its own."""

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True)
        named = {p.name: p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        for holder in holders:
            for parameter in inspect.signature(holder, eval_str=True).parameters.values():
                named.setdefault(parameter.name, parameter)
        command.__signature__ = own.replace(parameters=list(named.values()))  # type: ignore[attr-defined]  # read by inspect
        return command

    return decorate


def answering(
    model: Model = default("model"),
    prefix: Prefix = "",
    prompt: Prompt = "",
    system: System = None,
    model_for: ModelFor = None,
    line_models: LineModels = default("line_models"),
    line_parameters: LineParameters = False,
    schema: Schema = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    max_cost: MaxCost = None,
    max_tokens_total: MaxTokensTotal = None,
    concurrency: Concurrency = default("concurrency"),
    rpm: Rpm = None,
    tpm: Tpm = None,
    workers: Workers = default("workers"),
    mode: CallMode = default("mode"),
    deadline: Deadline = default("deadline"),
    patience: Patience = None,
    gateway: Gateway = None,
    header: Header = None,
    call_timeout: CallTimeout = default("call_timeout"),
    batch_size: BatchSize = default("batch_size"),
    batch_seconds: BatchSeconds = default("batch_seconds"),
    range_bytes: RangeBytes = default("range_bytes"),
    max_line_bytes: MaxLineBytes = default("max_line_bytes"),
    max_file_bytes: MaxFileBytes = default("max_file_bytes"),
    poll_seconds: PollSeconds = default("poll_seconds"),
    ledger: Ledger = None,
    reuse: Reuse = default("reuse"),
    drain_seconds: DrainSeconds = default("drain_seconds"),
    prism_location: PrismLocation = None,
    allow_open_ports: AllowOpenPorts = False,
) -> None:
    """Parameters of every command that answers files (for ``takes``)."""


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that go into the options, as the options have them."""
    apart = ("files", "system", "model_for", "flink", "dataflow")
    found = {
        name: value for name, value in arguments.items() if name in JsonlOptions.model_fields and name not in apart
    }
    if "header" in found:
        found["header"] = tuple(found["header"] or ())
    for name, kind in (("flink", FlinkOptions), ("dataflow", DataflowOptions)):
        said = {field: arguments[field] for field in kind.model_fields if field in arguments}
        if said:
            found[name] = {
                field: tuple(value or ()) if field in ("env_from", "beam_options") else value
                for field, value in said.items()
            }
    return found


def decisive(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that decide an answer which the command line gives in files. Raises UsageError."""
    system: Path | None = arguments["system"]
    return {
        "system": "" if system is None else read_text(system, "--system"),
        "model_for": tuple(arguments["model_for"] or ()),
        "response_schema": _read_schema(arguments["schema"]),
    }


def _read_schema(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = json.loads(read_text(path, "--schema"))
    except ValueError as error:
        raise UsageError([f"--schema {path} is no JSON: {error}"]) from None
    if not isinstance(schema, dict):
        raise UsageError([f"--schema {path} holds no JSON object: write a JSON Schema"])
    return schema


def read_text(path: Path, option: str) -> str:
    """A file that an option names. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is no UTF-8"
    raise UsageError([f"{option} {path} cannot be read ({why}): name a text file in UTF-8"])
