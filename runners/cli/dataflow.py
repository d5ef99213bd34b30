"""What ``llmdo run`` and ``llmdo stream`` do on Dataflow without running anything: show the job, or keep it."""

from __future__ import annotations

import json
from typing import NoReturn

import typer
from rich.console import Console

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.dataflow import check
from llmdo.runners.temporary import kept_folder, temporary_files


def without_running(options: JsonlOptions, dry_run: bool, as_json: bool) -> NoReturn:
    """Builds the job, and leaves. Raises UsageError, and for a template what ``prepare`` raises."""
    check(options)
    from llmdo.runners.running.dataflow_job import build_job, make_template, show_job  # noqa: PLC0415  needs the extra [gcp]

    if not dry_run:
        with temporary_files():
            make_template(options)
        raise typer.Exit
    folder = kept_folder()
    with temporary_files():
        job = build_job(options, folder)
    if as_json:
        print(json.dumps(job.as_json()))  # noqa: T201  this is the command's output
    else:
        Console().print(show_job(job))
    raise typer.Exit
