"""The commands that work on what runs have left: ``llmdo retry``, ``llmdo verify`` and ``llmdo ledger``."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.console import Console

from llmdo.runners.cli import arguments as arg
from llmdo.runners.inspecting.verify import render
from llmdo.runners.inspecting.verify import verify as check_output
from llmdo.runners.running.retry import retry as retry_errors
from llmdo.runners.running.retry import retry_json, retry_options, show_retry
from llmdo.runners.showing.progress import Watch
from llmdo.runners.showing.summary import EXIT_FAILED
from llmdo.runners.showing.terminal import leave, quiet, stderr
from llmdo.storage.ledger.opening import prune as prune_ledger

RETRY_EXAMPLES = """Example: llmdo retry r2://bucket/output/ --all

Exit codes: 0 no errors are left; 3 some lines are still errors; 1 failed or stopped, the same command goes on; 2 usage.
"""
VERIFY_EXAMPLES = "Example: llmdo verify r2://bucket/output/ --input r2://bucket/input/"
PRUNE_EXAMPLES = "Example: llmdo ledger prune sqlite:///out/_ledger.sqlite --older-than-days 30"


def retry(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    everything: Annotated[bool, typer.Option("--all", help="Also lines whose error says that it would come again.")] = (
        False
    ),
    line_models: arg.LineModels = arg.default("line_models"),
    max_cost: arg.MaxCost = None,
    max_tokens_total: arg.MaxTokensTotal = None,
    concurrency: arg.Concurrency = arg.default("concurrency"),
    rpm: arg.Rpm = None,
    tpm: arg.Tpm = None,
    workers: arg.Workers = arg.default("workers"),
    mode: arg.CallMode = arg.default("mode"),
    deadline: arg.Deadline = arg.default("deadline"),
    patience: arg.Patience = None,
    gateway: arg.Gateway = None,
    header: arg.Header = None,
    call_timeout: arg.CallTimeout = arg.default("call_timeout"),
    ledger: arg.Ledger = None,
    drain_seconds: arg.DrainSeconds = arg.default("drain_seconds"),
    as_json: arg.AsJson = False,
) -> None:
    """Answer an output's error lines again, by its own model and parameters, and merge the answers in."""
    given = arg.given(locals())
    which: Literal["retryable", "all"] = "all" if everything else "retryable"
    options = retry_options(which=which, **given)
    summary = retry_errors(options, quiet if as_json else Watch(stderr))
    if as_json:
        print(json.dumps(retry_json(summary)))  # noqa: T201  this is the command's output
    else:
        show_retry(summary, options, Console())
    leave(summary)


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


def prune(
    url: Annotated[str, typer.Argument(help="The ledger, as given to run.")],
    older_than_days: Annotated[float, typer.Option(help="Age in days of what goes.", min=0)],
) -> None:
    """Remove old answers from a ledger; runs may go on meanwhile."""
    pruned = prune_ledger(url, older_than_days * 86_400)
    print(f"removed {pruned.entries:,} answers of {pruned.bytes:,} bytes")  # noqa: T201  this is the command's output
