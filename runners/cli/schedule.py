"""The command ``llmdo schedule``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from llmdo.pipelines.options import check_options
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli import runner_arguments as arg_runners
from llmdo.runners.running.cron import Cron
from llmdo.runners.running.schedule import schedule as run_schedule
from llmdo.runners.showing.terminal import stderr
from llmdo.settings.environment import default_queue

_ONLY_HERE = ("--cron", "--timezone")  # what no run has

EXAMPLES = """
Examples:

    llmdo schedule --cron '*/15 * * * *' --input r2://bucket/input/ --output r2://bucket/output/

    llmdo schedule --cron '30 2 * * *' --timezone Europe/Berlin --queue llmdo-input --output r2://bucket/output/

Exit codes: when it is stopped that of its last run: 0 all answered; 3 some lines ended as errors; 1 failed or stopped;
2 usage. Each run's summary is in OUTPUT/_runs/TICK.json.
"""


@arg.takes(arg.answering, arg_runners.flink, arg_runners.dataflow)
def schedule(
    cron: Annotated[
        str, typer.Option(help="Minute, hour, day of month, month, day of week; with six fields seconds come first.")
    ],
    output: arg.Output,
    files: arg.Files = None,
    timezone: Annotated[str, typer.Option(help="Whose clock --cron means: UTC, Europe/Berlin, ….")] = "UTC",
    input: arg.Input = None,
    queue: arg.Queue = None,
    runner: Annotated[str, typer.Option(help="direct, prism, flink or dataflow.")] = arg.default("runner"),
    as_json: Annotated[bool, typer.Option("--json", help="Print each run's summary as JSON, and no progress.")] = False,
    **given: Any,
) -> None:
    """Answer what is there at each tick, never two runs at once, until SIGTERM or Ctrl-C, which drain."""
    ticks = Cron(cron, timezone)
    given |= {"output": output, "input": input, "queue": queue, "runner": runner}
    if not (files or input or queue):
        given["queue"] = default_queue()
    options = check_options(**arg.given(given) | arg.decisive(given), files=tuple(files or ()))
    console = Console()

    def waits(tick: datetime) -> None:
        if not as_json:
            stderr.print(next_run(tick, datetime.now(UTC), ticks), highlight=False)

    def ended(said: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(said), flush=True)  # noqa: T201  this is the command's output
        else:
            console.print(Text(run_line(said)), soft_wrap=True)

    command = shlex.join(["llmdo", *sys.argv[1:]])
    run = run_arguments(sys.argv[1:]) + ([] if as_json else ["--progress"])
    raise typer.Exit(run_schedule(options, ticks, command, run, waits, ended))


def run_arguments(schedule: Sequence[str]) -> list[str]:
    """The arguments of one run of a schedule: its own without what says when."""
    given, found = iter(schedule[1:]), ["run", "--json"]
    for word in given:
        if word == "--":
            return [*found, word, *given]
        if word in _ONLY_HERE:
            next(given, None)
        elif word != "--json" and word.partition("=")[0] not in _ONLY_HERE:
            found.append(word)
    return found


def next_run(tick: datetime, now: datetime, cron: Cron) -> str:
    """When the next run is, in the schedule's own time."""
    minutes, seconds = divmod(max(0, round((tick - now).total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
    return f"The next run is at {tick.astimezone(cron.zone):%Y-%m-%d %H:%M:%S %Z}, in {left}."


def run_line(said: dict[str, Any]) -> str:
    """How a run ended, in one line."""
    seconds = (datetime.fromisoformat(said["ended"]) - datetime.fromisoformat(said["started"])).total_seconds()
    done = (
        "{answered:,} lines answered, {failed:,} errors, {files_done:,} files done, ".format(**said)
        if "files" in said
        else ""
    )
    problem = f": {said['problem']}" if said.get("problem") else ""
    return f"{said['tick']}: {done}{seconds:,.0f} s, exit code {said['exit_code']}{problem}"
