"""``llmdo stream``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.shown import ADVANCED, OUTPUT
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli.answer.run import finish, without_running
from llmdo.runners.lean_beam import import_beam
from llmdo.settings.environment import default_queue

EXAMPLES = """
Examples:

    llmdo stream --queue llmdo-input --output r2://bucket/output/

    llmdo stream --output r2://bucket/output/ --batch-seconds 5 --drain-seconds 120     (the queue is LLMDO_QUEUE)

Exit codes: 0 stopped and drained; 1 gave up; 2 usage. The next start resumes what is in progress.
"""


app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(JsonlOptions, without=("files", "input", "ready_by"))
def stream(
    given: dict[str, Any],
    runner: Annotated[str, typer.Option(help="prism, flink or dataflow.", rich_help_panel=ADVANCED.title)] = "prism",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --runner dataflow: build the job only.", rich_help_panel=OUTPUT.title),
    ] = False,
    samples: arg.Samples = None,
    as_json: arg.AsJson = False,
    json_progress: arg.JsonProgress = False,
    metrics_port: arg.MetricsPort = None,
    metrics_host: arg.MetricsHost = "127.0.0.1",
) -> None:
    """``llmdo stream``."""
    given |= {"queue": given["queue"] or default_queue(), "runner": runner, "continuous": True}
    options = check_options(**given)
    without_running(options, dry_run, as_json)
    import_beam(options.runner)
    from llmdo.runners.running.stream import stream as stream_files
    from llmdo.runners.showing.progress import display, stream_line

    shown = display(stream_line, as_json=as_json, json_progress=json_progress)
    with arg.served(shown, metrics_port, metrics_host) as watch:
        summary = stream_files(options, watch)
    finish(summary, options, as_json, samples)
