"""The command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from llmdo.backends.errors import ModelError
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli import chat as commands_chat
from llmdo.runners.cli import models as commands_models
from llmdo.runners.cli import outputs as commands_outputs
from llmdo.runners.cli import runner_arguments as arg_runners
from llmdo.runners.cli import schedule as commands_schedule
from llmdo.runners.cli.dataflow import without_running
from llmdo.runners.cli.stdin import with_stdin
from llmdo.runners.dataflow import template_location
from llmdo.runners.inspecting.dryrun import plan, show_plan
from llmdo.runners.running.run import run as run_files
from llmdo.runners.running.stream import stream as stream_files
from llmdo.runners.showing.limits import until_text
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.showing.progress import Watch, show_summary, stream_line
from llmdo.runners.showing.summary import EXIT_FAILED, EXIT_USAGE, Summary
from llmdo.runners.showing.terminal import complain, leave, quiet, stderr
from llmdo.runners.temporary import remove_abandoned
from llmdo.runners.tools import ToolError
from llmdo.settings.environment import MissingSettings, default_queue
from llmdo.storage.errors import BucketNotFound, StorageError

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
app.command(epilog=commands_schedule.EXAMPLES)(commands_schedule.schedule)
app.command(epilog=commands_models.ASK_EXAMPLES)(commands_models.ask)
app.command(epilog=commands_models.MODELS_EXAMPLES)(commands_models.models)
app.command(epilog=commands_outputs.RETRY_EXAMPLES)(commands_outputs.retry)
app.command(epilog=commands_outputs.VERIFY_EXAMPLES)(commands_outputs.verify)
ledger_app.command(epilog=commands_outputs.PRUNE_EXAMPLES)(commands_outputs.prune)

_SAMPLES = 3  # answers that a person at a terminal is shown at the end

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
    samples: arg.Samples = None,
    as_json: arg.AsJson = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show progress with --json, too.", hidden=True)] = False,
    **given: Any,
) -> None:
    """Answer what is there, then exit: files, a listing, or what a queue announces."""
    given |= {"output": output, "input": input, "queue": queue, "runner": runner}
    if not (files or input or queue or (dry_run and runner != "dataflow")):
        given["queue"] = default_queue()
    named = with_stdin(files or (), output, keep=not dry_run)
    options = check_options(**arg.given(given) | arg.decisive(given), files=tuple(named))
    _without_running(options, dry_run, as_json)
    _finish(run_files(options, quiet if as_json and not progress else Watch(stderr)), options, as_json, samples)


@app.command(epilog=_STREAM_EXAMPLES)
@arg.takes(arg.answering, arg_runners.flink, arg_runners.dataflow)
def stream(
    output: arg.Output,
    queue: arg.Queue = None,
    runner: Annotated[str, typer.Option(help="prism, flink or dataflow.")] = "prism",
    max_restarts: arg.MaxRestarts = arg.default("max_restarts"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --runner dataflow: build the job only.")] = False,
    samples: arg.Samples = None,
    as_json: arg.AsJson = False,
    **given: Any,
) -> None:
    """Answer what a queue announces, until SIGTERM or Ctrl-C, which drain; a second one leaves at once."""
    given |= {"output": output, "queue": queue or default_queue(), "runner": runner, "max_restarts": max_restarts}
    options = check_options(**arg.given(given) | arg.decisive(given), continuous=True)
    _without_running(options, dry_run, as_json)
    _finish(stream_files(options, quiet if as_json else Watch(stderr, stream_line)), options, as_json, samples)


def _without_running(options: JsonlOptions, dry_run: bool, as_json: bool) -> None:
    """Leaves where nothing is to run: the lines are looked at; on Dataflow the job is, or it becomes a template."""
    if options.runner == "dataflow" and (dry_run or template_location(options)):
        without_running(options, dry_run, as_json)
    if not dry_run:
        return
    report = plan(options)
    if as_json:
        print(json.dumps(report.as_json()))  # noqa: T201  this is the command's output
    else:
        Console().print(show_plan(report))
    raise typer.Exit(report.exit_code)


def _finish(summary: Summary, options: JsonlOptions, as_json: bool, samples: int | None) -> NoReturn:
    if as_json:
        print(json.dumps(summary.as_json()), flush=True)  # noqa: T201  this is the command's output
    else:
        if samples is None:
            samples = _SAMPLES if sys.stdout.isatty() else 0
        show_summary(summary, options.output_location, Console(), samples)
    leave(summary)


_LOCAL_EXAMPLES = """
Example: llmdo local --data data/ --port 8787 & then: . data/env

It fails when told to: POST /_faults {"target": "ai", "status": 429, "count": 3}; DELETE /_faults ends that. See
docs/reliability.md.
"""


@app.command(epilog=_LOCAL_EXAMPLES)
def local(
    data: Annotated[Path, typer.Option(help="Folder for queues and credentials; DATA/env is written there.")],
    port: Annotated[int, typer.Option(help="TCP port on 127.0.0.1; 0 takes a free one.")] = 8787,
    model: Annotated[str, typer.Option(help="What answers: local/smollm2-135m-instruct, or echo.")] = (
        "local/smollm2-135m-instruct"
    ),
) -> None:
    """Serve Cloudflare on this machine: R2 with event notifications, Queues, Workers AI; until SIGTERM."""
    try:
        from llmdo.local.server import serve  # noqa: PLC0415  needs the extra [local]
        from llmdo.local.settings import CannotServe  # noqa: PLC0415  as above
    except ModuleNotFoundError as error:
        complain(f"llmdo local needs the package {error.name}: pip install 'llm.do[local]'")
        raise typer.Exit(EXIT_USAGE) from None
    try:
        serve(data, port, model)
    except CannotServe as error:
        complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr, and with --json an object on stdout, too."""
    quieten(log_level())
    remove_abandoned()
    try:
        app(args=argv)
        return
    except (UsageError, MissingSettings) as error:
        code, problems = EXIT_USAGE, list(error.problems)
    except BucketNotFound as error:
        code, problems = EXIT_USAGE, [str(error)]
    except (StorageError, ToolError, ModelError) as error:
        code, problems = EXIT_FAILED, [str(error)]
        if isinstance(error, ModelError) and error.until is not None:
            problems.append(until_text(error.until))
    complain(*problems)
    if "--json" in (sys.argv[1:] if argv is None else argv):
        print(json.dumps({"exit_code": code, "problem": "; ".join(problems)}), flush=True)  # noqa: T201  as above
    sys.exit(code)
