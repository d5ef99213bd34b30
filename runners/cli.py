"""The command line."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pipelines.options import DEFAULT_MODEL, JsonlOptions, UsageError, check_options
from runners.progress import Watch, show_summary
from runners.run import EXIT_FAILED, EXIT_USAGE
from runners.run import run as run_files
from runners.verify import render
from runners.verify import verify as check_output
from storage.environment import MissingSettings, default_queue
from storage.errors import BucketNotFound, StorageError
from storage.ledger import prune as prune_ledger

app = typer.Typer(
    name="llmdo",
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
ledger_app = typer.Typer(help="Look after ledgers of paid answers.", no_args_is_help=True)
app.add_typer(ledger_app, name="ledger")
_fields = JsonlOptions.model_fields
# Progress and complaints go to stderr, so that stdout holds what was asked for.
_err = Console(stderr=True)

_RUN_EXAMPLES = """
Examples:

    llmdo run prompts.jsonl --output out/ --model local/smollm2-135m-instruct

    llmdo run --input r2://bucket/input/ --output r2://bucket/output/

    llmdo run --queue llmdo-input --output r2://bucket/output/ --runner prism

Exit codes: 0 all answered; 3 finished, some lines ended as errors; 1 failed or stopped; 2 usage.
"""


@app.command(epilog=_RUN_EXAMPLES)
def run(
    output: Annotated[str, typer.Option(help="Where answers go: r2://BUCKET/PREFIX/ or a folder.")],
    files: Annotated[list[str] | None, typer.Argument(help="Local files, folders or glob patterns.")] = None,
    input: Annotated[str | None, typer.Option(help="r2://BUCKET/PREFIX/ to list.")] = None,
    queue: Annotated[str | None, typer.Option(help="Queue of R2 events, id or name; default LLMDO_QUEUE.")] = None,
    model: Annotated[str, typer.Option(help="PROVIDER/MODEL for lines that name none.")] = DEFAULT_MODEL,
    runner: Annotated[str, typer.Option(help="direct or prism.")] = _fields["runner"].default,
    prefix: Annotated[str, typer.Option(help="Only objects below this prefix (with --queue).")] = "",
    system: Annotated[Path | None, typer.Option(help="File with a system prompt for lines that have none.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 5.")] = None,
    concurrency: Annotated[str, typer.Option(help="Calls in flight at most: N or fixed:N.")] = str(
        _fields["concurrency"].default
    ),
    batch_size: Annotated[int, typer.Option(help="Lines in a shard at most.")] = _fields["batch_size"].default,
    batch_seconds: Annotated[float, typer.Option(help="Seconds until a shard is written anyway.")] = _fields[
        "batch_seconds"
    ].default,
    range_bytes: Annotated[int, typer.Option(help="Bytes of a file that one worker reads.")] = _fields[
        "range_bytes"
    ].default,
    max_line_bytes: Annotated[int, typer.Option(help="A longer line ends as an error.")] = _fields[
        "max_line_bytes"
    ].default,
    poll_seconds: Annotated[float, typer.Option(help="Seconds between pulls of the queue.")] = _fields[
        "poll_seconds"
    ].default,
    ledger: Annotated[
        str | None,
        typer.Option(help="Keeps answers as they arrive: sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, none."),
    ] = None,
    reuse: Annotated[str, typer.Option(help="Whose answer may be taken: same-line or same-request.")] = _fields[
        "reuse"
    ].default,
    prism_location: Annotated[str | None, typer.Option(help="Path of the Prism binary.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and no progress.")] = False,
) -> None:
    """Answer what is there, then exit: files, a listing, or what a queue announces."""
    given = {
        name: value
        for name, value in locals().items()
        if name in JsonlOptions.model_fields and name not in ("files", "system")
    }
    if not (files or input or queue):
        given["queue"] = default_queue()
    options = check_options(**given, files=tuple(files or ()), system=_read_text(system))
    watch = (lambda _: nullcontext()) if as_json else Watch(_err)
    summary = run_files(options, watch)
    if as_json:
        print(json.dumps(summary.as_json()))  # noqa: T201  this is the command's output
    else:
        show_summary(summary, options.output_location, Console())
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


def _read_text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError([f"--system {path}: {error}"]) from None


def _complain(*problems: str) -> None:
    for problem in problems:
        # As text: what a service says may hold brackets, which are no markup.
        _err.print(Text.assemble(("llmdo: ", "red"), problem), soft_wrap=True)


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr."""
    level = os.environ.get("LLMDO_LOG_LEVEL", "WARNING")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    try:
        app(args=argv)
    except (UsageError, MissingSettings) as error:
        _complain(*error.problems)
        sys.exit(EXIT_USAGE)
    except BucketNotFound as error:
        _complain(str(error))
        sys.exit(EXIT_USAGE)
    except StorageError as error:
        _complain(str(error))
        sys.exit(EXIT_FAILED)
