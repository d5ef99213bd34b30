"""``llmdo retry``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.cli import arguments as arg
from llmdo.runners.lean_beam import import_beam
from llmdo.runners.showing.terminal import exit_by, put, stderr

EXAMPLES = """Example: llmdo retry r2://bucket/output/ --all

Exit codes: 0 no errors are left; 3 some lines are still errors; 1 failed or stopped, the same command resumes; 2 usage.
"""
# What does not affect the answers; all else is the output's own.
_OPTIONS = (
    *("line_models", "max_cost", "max_tokens_total", "concurrency", "rpm", "tpm", "workers", "mode", "deadline"),
    *("patience", "gateway", "header", "call_timeout", "ledger", "drain_seconds"),
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
) -> None:
    """``llmdo retry``."""
    import_beam(str(JsonlOptions.model_fields["runner"].default))
    from llmdo.runners.running import retry as running
    from llmdo.runners.showing.progress import ProgressDisplay, quiet

    options = running.retry_options(output, "all" if everything else "retryable", **given)
    summary = running.retry(options, quiet if as_json else ProgressDisplay(stderr))
    if as_json:
        put(running.retry_json(summary))
    else:
        running.show_retry(summary, options, Console())
    exit_by(summary, summary.exit_code)
