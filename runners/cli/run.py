"""``llmdo run``; and how commands that answer files end, or exit early because nothing is to be run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.shown import OUTPUT
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli.stdin import with_stdin
from llmdo.runners.lean_beam import import_beam
from llmdo.runners.showing.terminal import exit_by, put, stderr
from llmdo.settings.environment import default_queue

if TYPE_CHECKING:
    from llmdo.runners.showing.summary import Summary

_SAMPLES = 3  # answers that a person at a terminal is shown at the end

EXAMPLES = """
Examples:

    llmdo run prompts.jsonl --output out/ --model local/smollm2-135m-instruct

    llmdo run --input r2://bucket/input/ --output r2://bucket/output/

    llmdo run --queue llmdo-input --output r2://bucket/output/ --runner prism

    llmdo run reviews.jsonl --output out/ --prompt 'Is this praise? {text}' --dry-run

Exit codes: 0 all answered; 3 finished, some lines ended as errors; 1 failed or stopped; 2 usage.
"""


app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(JsonlOptions, without=("max_restarts",))
def run(
    given: dict[str, Any],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check every line, estimate tokens, cost and time; no call.",
            rich_help_panel=OUTPUT.title,
        ),
    ] = False,
    samples: arg.Samples = None,
    as_json: arg.AsJson = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show progress with --json, too.", hidden=True)] = False,
) -> None:
    """``llmdo run``."""
    if not (given["files"] or given["input"] or given["queue"] or (dry_run and given["runner"] != "dataflow")):
        given["queue"] = default_queue()
    given["files"] = tuple(with_stdin(given["files"], given["output"], keep=not dry_run))
    options = check_options(**given)
    without_running(options, dry_run, as_json)
    import_beam(options.runner)
    from llmdo.runners.running.run import run as run_files
    from llmdo.runners.showing.progress import ProgressDisplay, quiet

    finish(
        run_files(options, quiet if as_json and not progress else ProgressDisplay(stderr)), options, as_json, samples
    )


def without_running(options: JsonlOptions, dry_run: bool, as_json: bool) -> None:
    """Exits if nothing is to be run: the lines are only checked, or the Dataflow job is built or made a template."""
    if options.runner == "dataflow":
        _without_sending(options, dry_run, as_json)
    elif dry_run:
        from llmdo.runners.inspecting.dryrun import plan_run, show_plan

        report = plan_run(options)
        put(report.as_json() if as_json else show_plan(report))
        raise typer.Exit(report.exit_code)


def _without_sending(options: JsonlOptions, dry_run: bool, as_json: bool) -> None:
    from llmdo.runners.dataflow import beam_option, check

    # Set by the launcher of a Flex Template, which starts the job itself.
    if not dry_run and not beam_option(options.dataflow, "template_location"):
        return
    check(options)
    from llmdo.runners.running.dataflow_job import build_job, make_template, show_job  # needs the extra [gcp]
    from llmdo.runners.temporary import kept_folder, temporary_files

    if not dry_run:
        with temporary_files():
            make_template(options)
        raise typer.Exit
    folder = kept_folder()
    with temporary_files():
        job = build_job(options, folder)
    put(job.as_json() if as_json else show_job(job))
    raise typer.Exit


def finish(summary: Summary, options: JsonlOptions, as_json: bool, samples: int | None) -> NoReturn:
    """Prints how a run ended, and exits with its code."""
    if as_json:
        put(summary.as_json())
    else:
        from llmdo.runners.showing.report import show_summary

        if samples is None:
            samples = _SAMPLES if sys.stdout.isatty() else 0
        show_summary(summary, options.output_location, Console(), samples)
    exit_by(summary, summary.exit_code)
