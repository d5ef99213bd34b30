"""``llmdo schedule``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from llmdo.pipelines.option_types import all_files
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.shown import INPUT, OUTPUT
from llmdo.runners.cli import arguments as arg
from llmdo.runners.showing.terminal import put, stderr
from llmdo.settings.environment import default_queue

if TYPE_CHECKING:
    from llmdo.runners.running.cron import Cron

_ONLY_HERE = ("--cron", "--timezone", "--metrics-port", "--metrics-host")  # options that run does not have

EXAMPLES = """
Examples:

    llmdo schedule --cron '*/15 * * * *' r2://bucket/input/ --output r2://bucket/output/

    llmdo schedule --cron '30 2 * * *' --timezone Europe/Berlin --queue llmdo-input --output r2://bucket/output/

Exit codes: when it is stopped that of its last run: 0 all answered; 3 some lines ended as errors; 4 handed over in
batches; 1 failed or stopped; 2 usage. Each run's summary is in OUTPUT/_runs/TICK.json.
"""


app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(JsonlOptions, without=("max_restarts",))
def schedule(
    given: dict[str, Any],
    cron: Annotated[
        str,
        typer.Option(
            help="Minute, hour, day of month, month, day of week; with six fields seconds come first.",
            rich_help_panel=INPUT.title,
        ),
    ],
    timezone: Annotated[
        str, typer.Option(help="Time zone of --cron: UTC, Europe/Berlin, ….", rich_help_panel=INPUT.title)
    ] = "UTC",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print each run's summary as JSON, and no progress.", rich_help_panel=OUTPUT.title),
    ] = False,
    metrics_port: arg.MetricsPort = None,
    metrics_host: arg.MetricsHost = "127.0.0.1",
) -> None:
    """``llmdo schedule``."""
    from llmdo.runners.running import schedule as running
    from llmdo.runners.running.cron import Cron

    ticks = Cron(cron, timezone)
    given["files"] = all_files(given | {"input": given.pop("input")})
    if not (given["files"] or given["queue"]):
        given["queue"] = default_queue()
    options = check_options(**given)
    console = Console()

    def waits(tick: datetime) -> None:
        figures.waits(tick)
        if not as_json:
            stderr.print(next_run(tick, datetime.now(UTC), ticks), highlight=False)

    def ended(said: dict[str, Any]) -> None:
        figures.ended(said)
        if as_json:
            put(said)
        else:
            console.print(Text(run_line(said)), soft_wrap=True)

    command = shlex.join(["llmdo", *sys.argv[1:]])
    run = run_arguments(sys.argv[1:]) + ([] if as_json else ["--progress"])
    with arg.schedule_served(metrics_port, metrics_host) as figures:
        code = running.schedule(options, ticks, command, run, waits, ended, figures.started)
    raise typer.Exit(code)


def run_arguments(schedule: Sequence[str]) -> list[str]:
    """The arguments of one run of a schedule: the schedule's own without its times."""
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
