"""The command line."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import grpc  # type: ignore[import-untyped]  # it has no types, and only its base error is needed
import typer
from rich.console import Console
from rich.text import Text

from backends.errors import ModelError
from pipelines.options import JsonlOptions, UsageError, check_options
from runners import arguments as arg
from runners import commands_models
from runners.dryrun import plan, show_plan
from runners.prism_binary import PrismError
from runners.progress import Watch, show_summary, stream_line
from runners.retry import retry as retry_errors
from runners.retry import retry_json, retry_options, show_retry
from runners.run import run as run_files
from runners.stream import stream as stream_files
from runners.summary import EXIT_FAILED, EXIT_USAGE, Summary
from runners.verify import render
from runners.verify import verify as check_output
from storage.environment import MissingSettings, default_queue, without_secrets
from storage.errors import BucketNotFound, StorageError
from storage.ledger import prune as prune_ledger
from transforms.run_state import RunState

app = typer.Typer(
    name="llmdo",
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
ledger_app = typer.Typer(help="Look after ledgers of paid answers.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
app.command(epilog=commands_models.ASK_EXAMPLES)(commands_models.ask)
app.command(epilog=commands_models.MODELS_EXAMPLES)(commands_models.models)
# Progress and complaints go to stderr, so that stdout holds what was asked for.
_err = Console(stderr=True)

_RUN_EXAMPLES = """
Examples:

    llmdo run prompts.jsonl --output out/ --model local/smollm2-135m-instruct

    llmdo run --input r2://bucket/input/ --output r2://bucket/output/

    llmdo run --queue llmdo-input --output r2://bucket/output/ --runner prism

    llmdo run reviews.jsonl --output out/ --prompt 'Is this praise? {text}' --dry-run

Exit codes: 0 all answered; 3 finished, some lines ended as errors; 1 failed or stopped; 2 usage.
"""


_STREAM_EXAMPLES = """
Examples:

    llmdo stream --queue llmdo-input --output r2://bucket/output/

    llmdo stream --output r2://bucket/output/ --batch-seconds 5 --drain-seconds 120     (the queue is LLMDO_QUEUE)

Exit codes: 0 stopped and drained; 1 gave up; 2 usage. What is in work goes on with the next start.
"""


_RETRY_CODES = """

Exit codes: 0 no errors are left; 3 some lines are still errors; 1 failed or stopped, the same command goes on; 2 usage.
"""


@app.command(epilog=_RUN_EXAMPLES)
def run(
    output: arg.Output,
    files: arg.Files = None,
    input: arg.Input = None,
    queue: arg.Queue = None,
    model: arg.Model = arg.default("model"),
    runner: Annotated[str, typer.Option(help="direct or prism.")] = arg.default("runner"),
    prefix: arg.Prefix = "",
    prompt: arg.Prompt = "",
    system: arg.System = None,
    model_for: arg.ModelFor = None,
    schema: arg.Schema = None,
    max_tokens: arg.MaxTokens = None,
    temperature: arg.Temperature = None,
    max_cost: arg.MaxCost = None,
    max_tokens_total: arg.MaxTokensTotal = None,
    concurrency: arg.Concurrency = arg.default("concurrency"),
    rpm: arg.Rpm = None,
    tpm: arg.Tpm = None,
    batch_size: arg.BatchSize = arg.default("batch_size"),
    batch_seconds: arg.BatchSeconds = arg.default("batch_seconds"),
    range_bytes: arg.RangeBytes = arg.default("range_bytes"),
    max_line_bytes: arg.MaxLineBytes = arg.default("max_line_bytes"),
    max_file_bytes: arg.MaxFileBytes = arg.default("max_file_bytes"),
    poll_seconds: arg.PollSeconds = arg.default("poll_seconds"),
    ledger: arg.Ledger = None,
    reuse: arg.Reuse = arg.default("reuse"),
    drain_seconds: arg.DrainSeconds = arg.default("drain_seconds"),
    prism_location: arg.PrismLocation = None,
    dry_run: arg.DryRun = False,
    as_json: arg.AsJson = False,
) -> None:
    """Answer what is there, then exit: files, a listing, or what a queue announces."""
    given = arg.given(locals()) | _decisive(system, model_for, schema)
    if not (files or input or queue or dry_run):
        given["queue"] = default_queue()
    options = check_options(**given, files=tuple(files or ()))
    if dry_run:
        _show_dry_run(options, as_json)
    _finish(run_files(options, _quiet if as_json else Watch(_err)), options, as_json)


@app.command(epilog=_STREAM_EXAMPLES)
def stream(
    output: arg.Output,
    queue: arg.Queue = None,
    model: arg.Model = arg.default("model"),
    runner: Annotated[str, typer.Option(help="prism.")] = "prism",
    prefix: arg.Prefix = "",
    prompt: arg.Prompt = "",
    system: arg.System = None,
    model_for: arg.ModelFor = None,
    schema: arg.Schema = None,
    max_tokens: arg.MaxTokens = None,
    temperature: arg.Temperature = None,
    max_cost: arg.MaxCost = None,
    max_tokens_total: arg.MaxTokensTotal = None,
    concurrency: arg.Concurrency = arg.default("concurrency"),
    rpm: arg.Rpm = None,
    tpm: arg.Tpm = None,
    batch_size: arg.BatchSize = arg.default("batch_size"),
    batch_seconds: arg.BatchSeconds = arg.default("batch_seconds"),
    range_bytes: arg.RangeBytes = arg.default("range_bytes"),
    max_line_bytes: arg.MaxLineBytes = arg.default("max_line_bytes"),
    max_file_bytes: arg.MaxFileBytes = arg.default("max_file_bytes"),
    poll_seconds: arg.PollSeconds = arg.default("poll_seconds"),
    ledger: arg.Ledger = None,
    reuse: arg.Reuse = arg.default("reuse"),
    drain_seconds: arg.DrainSeconds = arg.default("drain_seconds"),
    max_restarts: Annotated[int, typer.Option(help="Failures in a row without progress before it gives up.")] = (
        arg.default("max_restarts")
    ),
    prism_location: arg.PrismLocation = None,
    as_json: arg.AsJson = False,
) -> None:
    """Answer what a queue announces, until SIGTERM or Ctrl-C, which drain; a second one leaves at once."""
    given = arg.given(locals()) | _decisive(system, model_for, schema)
    options = check_options(**given | {"queue": queue or default_queue(), "continuous": True})
    _finish(stream_files(options, _quiet if as_json else Watch(_err, stream_line)), options, as_json)


def _decisive(system: Path | None, model_for: list[str] | None, schema: Path | None) -> dict[str, Any]:
    """Those of the options that decide an answer which the command line does not give as they are."""
    return {
        "system": _read_text(system, "--system"),
        "model_for": tuple(model_for or ()),
        "response_schema": _read_schema(schema),
    }


def _show_dry_run(options: JsonlOptions, as_json: bool) -> NoReturn:
    report = plan(options)
    if as_json:
        print(json.dumps(report.as_json()))  # noqa: T201  this is the command's output
    else:
        Console().print(show_plan(report))
    raise typer.Exit(report.exit_code)


def _quiet(_: RunState) -> AbstractContextManager[None]:
    return nullcontext()


def _finish(summary: Summary, options: JsonlOptions, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201  this is the command's output
    else:
        show_summary(summary, options.output_location, Console())
    if summary.problem:
        _complain(summary.problem)
    raise typer.Exit(summary.exit_code)


@app.command(epilog="Example: llmdo retry r2://bucket/output/ --all" + _RETRY_CODES)
def retry(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    everything: Annotated[bool, typer.Option("--all", help="Also lines whose error says that it would come again.")] = (
        False
    ),
    max_cost: arg.MaxCost = None,
    max_tokens_total: arg.MaxTokensTotal = None,
    concurrency: arg.Concurrency = arg.default("concurrency"),
    ledger: arg.Ledger = None,
    drain_seconds: arg.DrainSeconds = arg.default("drain_seconds"),
    as_json: arg.AsJson = False,
) -> None:
    """Answer an output's error lines again, by its own model and parameters, and merge the answers in."""
    which: Literal["retryable", "all"] = "all" if everything else "retryable"
    options = retry_options(
        output,
        which,
        max_cost=max_cost,
        max_tokens_total=max_tokens_total,
        concurrency=concurrency,
        ledger=ledger,
        drain_seconds=drain_seconds,
    )
    summary = retry_errors(options, _quiet if as_json else Watch(_err))
    if as_json:
        print(json.dumps(retry_json(summary)))  # noqa: T201  this is the command's output
    else:
        show_retry(summary, options, Console())
    if summary.problem:
        _complain(summary.problem)
    raise typer.Exit(summary.exit_code)


@app.command(epilog="Example: llmdo verify r2://bucket/output/ --input r2://bucket/input/")
def verify(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    input: Annotated[
        list[str] | None, typer.Option(help="The prompts, as given to run: r2:// prefixes, files, folders, patterns.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check an output: is every line of every source in exactly one shard, and is every manifest true?"""
    result = check_output(output, list(input or ()))
    if as_json:
        print(json.dumps(result.as_json()))  # noqa: T201  this is the command's output
    else:
        Console().print(render(result))
    raise typer.Exit(0 if result.ok else EXIT_FAILED)


@app.command(epilog="Example: llmdo local --data data/ --port 8787 & then: . data/env")
def local(
    data: Annotated[Path, typer.Option(help="Folder for queues and credentials; DATA/env is written there.")],
    port: Annotated[int, typer.Option(help="TCP port on 127.0.0.1; 0 takes a free one.")] = 8787,
    model: Annotated[str, typer.Option(help="What answers: local/smollm2-135m-instruct, or echo.")] = (
        "local/smollm2-135m-instruct"
    ),
) -> None:
    """Serve Cloudflare on this machine: R2 with event notifications, Queues, Workers AI; until SIGTERM."""
    try:
        from local.server import serve  # noqa: PLC0415  needs the extra [local]
        from local.settings import CannotServe  # noqa: PLC0415  as above
    except ModuleNotFoundError as error:
        _complain(f"llmdo local needs the package {error.name}: pip install 'llmdo[local]'")
        raise typer.Exit(EXIT_USAGE) from None
    try:
        serve(data, port, model)
    except CannotServe as error:
        _complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None


@ledger_app.command(epilog="Example: llmdo ledger prune sqlite:///out/_ledger.sqlite --older-than-days 30")
def prune(
    url: Annotated[str, typer.Argument(help="The ledger, as given to run.")],
    older_than_days: Annotated[float, typer.Option(help="Age in days of what goes.", min=0)],
) -> None:
    """Remove old answers from a ledger; runs may go on meanwhile."""
    pruned = prune_ledger(url, older_than_days * 86_400)
    print(f"removed {pruned.entries:,} answers of {pruned.bytes:,} bytes")  # noqa: T201  this is the command's output


def _read_text(path: Path | None, option: str) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError([f"{option} {path}: {error}"]) from None


def _read_schema(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = json.loads(_read_text(path, "--schema"))
    except ValueError as error:
        raise UsageError([f"--schema {path} is no JSON: {error}"]) from None
    if not isinstance(schema, dict):
        raise UsageError([f"--schema {path} holds no JSON object: write a JSON Schema"])
    return schema


def _complain(*problems: str) -> None:
    for problem in problems:
        # As text: what a service says may hold brackets, which are no markup.
        _err.print(Text.assemble(("llmdo: ", "red"), problem), soft_wrap=True)


class _LogFormat(logging.Formatter):
    """Shows no secret: at DEBUG the HTTP libraries log what services send, and that may be what was sent to them."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _quieten(level: str) -> None:
    """Keeps what Beam and gRPC say of a pipeline that failed away from users, who get one sentence for it."""
    logging.basicConfig()  # does nothing where Beam's import has made a handler already
    logging.getLogger().setLevel(level)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_LogFormat("%(levelname)s %(name)s: %(message)s"))
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        # A thread of Beam's worker whose connection was there until the runner was stopped, or died.
        if not isinstance(args.exc_value, grpc.RpcError):
            others(args)

    threading.excepthook = hook


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr."""
    level = os.environ.get("LLMDO_LOG_LEVEL", "WARNING")
    _quieten(level)
    try:
        app(args=argv)
    except (UsageError, MissingSettings) as error:
        _complain(*error.problems)
        sys.exit(EXIT_USAGE)
    except BucketNotFound as error:
        _complain(str(error))
        sys.exit(EXIT_USAGE)
    except (StorageError, PrismError, ModelError) as error:
        _complain(str(error))
        sys.exit(EXIT_FAILED)
