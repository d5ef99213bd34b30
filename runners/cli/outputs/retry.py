"""``llmdo retry``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.cli import arguments as arg
from llmdo.runners.lean_beam import import_beam
from llmdo.runners.showing.terminal import exit_by, is_quiet, put

EXAMPLES = """Example: llmdo retry r2://bucket/output/ --all

Exit codes: 0 no errors are left; 3 some lines are still errors; 1 failed or stopped, the same command resumes; 2 usage.
"""
# What does not affect the answers; all else is the output's own.
_OPTIONS = (
    *("line_models", "max_cost", "max_tokens_total", "budget", "concurrency", "rpm", "tpm", "workers", "mode"),
    *("deadline", "patience", "gateway", "header", "call_timeout", "ledger", "drain_seconds", "notify_queue"),
    *("media_from", "max_media_bytes"),
)


app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(JsonlOptions, only=_OPTIONS)
def retry(
    given: dict[str, Any],
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also lines whose error says that it would occur again.")
    ] = False,
    as_json: arg.AsJson = False,
    json_progress: arg.JsonProgress = False,
) -> None:
    """``llmdo retry``."""
    import_beam(str(JsonlOptions.model_fields["runner"].default))
    from llmdo.runners.running import retry as running
    from llmdo.runners.showing.progress import display

    options = running.retry_options(output, "all" if everything else "retryable", **given)
    summary = running.retry(options, display(as_json=as_json, json_progress=json_progress))
    if as_json:
        put(running.retry_json(summary))
    elif not is_quiet():
        from llmdo.runners.showing.errors import errors_of

        running.show_retry(summary, options, Console(), errors_of(summary, options.output_location))
    exit_by(summary, summary.exit_code)
