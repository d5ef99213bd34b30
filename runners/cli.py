"""The command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from backends.errors import ModelError
from pipelines.options import JsonlOptions, UsageError, check_options
from runners import arguments as arg
from runners import arguments_runners as arg_runners
from runners import commands_chat, commands_models, commands_outputs
from runners.dryrun import plan, show_plan
from runners.logs import quieten
from runners.prism_binary import PrismError
from runners.progress import Watch, show_summary, stream_line
from runners.run import run as run_files
from runners.stream import stream as stream_files
from runners.summary import EXIT_FAILED, EXIT_USAGE, Summary
from runners.terminal import complain, leave, quiet, stderr
from storage.environment import MissingSettings, default_queue
from storage.errors import BucketNotFound, StorageError

app = typer.Typer(
    name="llmdo",
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
ledger_app = typer.Typer(help="Look after ledgers of paid answers.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
app.add_typer(commands_chat.chat_app, name="chat")
app.command(epilog=commands_models.ASK_EXAMPLES)(commands_models.ask)
app.command(epilog=commands_models.MODELS_EXAMPLES)(commands_models.models)
app.command(epilog=commands_outputs.RETRY_EXAMPLES)(commands_outputs.retry)
app.command(epilog=commands_outputs.VERIFY_EXAMPLES)(commands_outputs.verify)
ledger_app.command(epilog=commands_outputs.PRUNE_EXAMPLES)(commands_outputs.prune)

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


@app.command(epilog=_RUN_EXAMPLES)
@arg.takes(arg.answering, arg_runners.flink, arg_runners.dataflow)
def run(
    output: arg.Output,
    files: arg.Files = None,
    input: arg.Input = None,
    queue: arg.Queue = None,
    runner: Annotated[str, typer.Option(help="direct, prism, flink or dataflow.")] = arg.default("runner"),
    dry_run: arg.DryRun = False,
    as_json: arg.AsJson = False,
    **given: Any,
) -> None:
    """Answer what is there, then exit: files, a listing, or what a queue announces."""
    given |= {"output": output, "input": input, "queue": queue, "runner": runner}
    if not (files or input or queue or dry_run):
        given["queue"] = default_queue()
    options = check_options(**arg.given(given) | _decisive(given), files=tuple(files or ()))
    if dry_run:
        _show_dry_run(options, as_json)
    _finish(run_files(options, quiet if as_json else Watch(stderr)), options, as_json)


@app.command(epilog=_STREAM_EXAMPLES)
@arg.takes(arg.answering, arg_runners.flink, arg_runners.dataflow)
def stream(
    output: arg.Output,
    queue: arg.Queue = None,
    runner: Annotated[str, typer.Option(help="prism, flink or dataflow.")] = "prism",
    max_restarts: arg.MaxRestarts = arg.default("max_restarts"),
    as_json: arg.AsJson = False,
    **given: Any,
) -> None:
    """Answer what a queue announces, until SIGTERM or Ctrl-C, which drain; a second one leaves at once."""
    given |= {"output": output, "queue": queue or default_queue(), "runner": runner, "max_restarts": max_restarts}
    options = check_options(**arg.given(given) | _decisive(given), continuous=True)
    _finish(stream_files(options, quiet if as_json else Watch(stderr, stream_line)), options, as_json)


def _decisive(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that decide an answer which the command line does not give as they are."""
    system: Path | None = given["system"]
    return {
        "system": "" if system is None else arg.read_text(system, "--system"),
        "model_for": tuple(given["model_for"] or ()),
        "response_schema": _read_schema(given["schema"]),
    }


def _show_dry_run(options: JsonlOptions, as_json: bool) -> NoReturn:
    report = plan(options)
    if as_json:
        print(json.dumps(report.as_json()))  # noqa: T201  this is the command's output
    else:
        Console().print(show_plan(report))
    raise typer.Exit(report.exit_code)


def _finish(summary: Summary, options: JsonlOptions, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201  this is the command's output
    else:
        show_summary(summary, options.output_location, Console())
    leave(summary)


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
        complain(f"llmdo local needs the package {error.name}: pip install 'llmdo[local]'")
        raise typer.Exit(EXIT_USAGE) from None
    try:
        serve(data, port, model)
    except CannotServe as error:
        complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None


def _read_schema(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = json.loads(arg.read_text(path, "--schema"))
    except ValueError as error:
        raise UsageError([f"--schema {path} is no JSON: {error}"]) from None
    if not isinstance(schema, dict):
        raise UsageError([f"--schema {path} holds no JSON object: write a JSON Schema"])
    return schema


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr."""
    level = os.environ.get("LLMDO_LOG_LEVEL", "WARNING")
    quieten(level)
    try:
        app(args=argv)
    except (UsageError, MissingSettings) as error:
        complain(*error.problems)
        sys.exit(EXIT_USAGE)
    except BucketNotFound as error:
        complain(str(error))
        sys.exit(EXIT_USAGE)
    except (StorageError, PrismError, ModelError) as error:
        complain(str(error))
        sys.exit(EXIT_FAILED)
