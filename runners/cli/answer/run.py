"""``llmdo run``; and how commands that answer files end, or exit early because nothing is to be run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from llmdo.pipelines.option_types import all_files
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.shown import MONEY, OUTPUT
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli.answer.stdin import with_stdin
from llmdo.runners.exit_codes import EXIT_SAMPLED
from llmdo.runners.lean_beam import import_beam
from llmdo.runners.showing.terminal import exit_by, is_quiet, note, put
from llmdo.settings.environment import default_queue

if TYPE_CHECKING:
    from llmdo.backends.money.money import Budget
    from llmdo.runners.running.attempt import Watch
    from llmdo.runners.showing.summary import Summary

NOTHING_MORE: Mapping[str, Any] = MappingProxyType({})
_SAMPLES = 3  # answers that a person at a terminal is shown at the end

EXAMPLES = """
Examples:

    llmdo run prompts.jsonl -o out/ -m openai/gpt-4o-mini

    llmdo run r2://bucket/input/ -o r2://bucket/output/

    llmdo run --queue llmdo-input --output r2://bucket/output/ --runner prism

    llmdo run reviews.jsonl --output out/ --prompt 'Is this praise? {text}' --dry-run

    llmdo run reviews.jsonl --output out/ --prompt 'Is this praise? {text}' --sample 20

Exit codes: 0 all answered; 3 finished, some lines ended as errors; 4 handed over in batches; 1 failed or stopped;
2 usage; 5 a sample was answered, and nothing else was to be.
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
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=2,
            help="Answer this many lines drawn over the whole input, show what all will cost, and ask before the rest.",
            rich_help_panel=MONEY.title,
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="With --sample: do not ask before the rest.", rich_help_panel=MONEY.title),
    ] = False,
    samples: arg.Samples = None,
    as_json: arg.AsJson = False,
    json_progress: arg.JsonProgress = False,
    progress: Annotated[bool, typer.Option("--progress", help="Show progress with --json, too.", hidden=True)] = False,
) -> None:
    """``llmdo run``."""
    given["files"] = all_files(given | {"input": given.pop("input")})
    if not (given["files"] or given["queue"] or (dry_run and given["runner"] != "dataflow")):
        given["queue"] = default_queue()
    given["files"] = tuple(with_stdin(given["files"], given["output"], keep=not dry_run, form=given["format"]))
    options = check_options(**given)
    _check_sample(sample, yes=yes, dry_run=dry_run)
    without_running(options, dry_run, as_json)
    import_beam(options.runner)
    from llmdo.runners.running.run import run as run_files
    from llmdo.runners.showing.progress import display

    watch, budget = display(as_json=as_json and not progress, json_progress=json_progress), options.new_budget()
    told = _sampled(options, sample, watch, budget, yes=yes, as_json=as_json) if sample else {}
    finish(run_files(options, watch, budget=budget), options, as_json, samples, told)


def _check_sample(sample: int | None, *, yes: bool, dry_run: bool) -> None:
    if sample and dry_run:
        raise UsageError(["--sample makes calls, and --dry-run makes none: give one of them"])
    if yes and not sample:
        raise UsageError(["--yes answers what --sample N asks: give that, too"])


def _sampled(
    options: JsonlOptions, count: int, watch: Watch, budget: Budget, *, yes: bool, as_json: bool
) -> dict[str, Any]:
    """Answers a sample, tells what it showed, and asks; exits unless all lines are to be answered.

    Returns what ``--json`` is to tell of it.
    """
    from llmdo.runners.sampling.sampling import answer_sample_of, draw_sample
    from llmdo.runners.sampling.telling import sample_json, show_sample

    drawn = draw_sample(options, count)
    if not drawn.lines:
        return {}
    found = answer_sample_of(options, drawn, watch, budget)
    told = {"sample": sample_json(found)}
    if found.summary.problem:
        finish(found.summary, options, as_json, 0, told)
    if not as_json:
        put(show_sample(found))
    elif not yes:
        put({"exit_code": EXIT_SAMPLED, **told})
    if yes or not (found.left or as_json):
        return told
    if as_json or not sys.stdin.isatty():
        note("the rest is not answered: give --yes to go on without a question")
    elif typer.confirm(f"Answer the other {found.left:,} lines?", err=True):
        return told
    raise typer.Exit(EXIT_SAMPLED)


def without_running(options: JsonlOptions, dry_run: bool, as_json: bool) -> None:
    """Exits if nothing is to be run: the lines are only checked, or the Dataflow job is built or made a template."""
    if options.runner == "dataflow":
        _without_sending(options, dry_run, as_json)
    elif dry_run:
        from llmdo.runners.inspecting.dryrun import plan_run
        from llmdo.runners.showing.plan import show_plan

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


def finish(
    summary: Summary, options: JsonlOptions, as_json: bool, samples: int | None, more: Mapping[str, Any] = NOTHING_MORE
) -> NoReturn:
    """Prints how a run ended, and exits with its code. ``more``: what is also told with ``--json``."""
    from llmdo.runners.showing.errors import errors_of

    output = options.output_location
    errors = () if summary.continuous else errors_of(summary, output)
    if as_json:
        put(summary.as_json() | {"errors": [one.as_json() for one in errors], **more})
    elif not is_quiet():
        from llmdo.runners.showing.report import show_summary

        if samples is None:
            samples = _SAMPLES if sys.stdout.isatty() else 0
        show_summary(summary, output, Console(), samples, errors)
    exit_by(summary, summary.exit_code)
