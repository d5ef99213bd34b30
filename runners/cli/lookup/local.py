"""``llmdo local``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED, EXIT_USAGE
from llmdo.runners.showing.terminal import complain
from llmdo.settings.installing import install_command

EXAMPLES = """
Example: llmdo local --data data/ --port 8787 & then: . data/env

OpenAI's API, with batches, is at http://127.0.0.1:8787/openai/v1, Anthropic's at http://127.0.0.1:8787/anthropic, for
any key.

It fails on demand: POST /_faults {"target": "ai", "status": 429, "count": 3}; DELETE /_faults ends that. See
docs/reliability.md.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def local(
    data: Annotated[Path, typer.Option(help="Folder for queues and credentials; DATA/env is written there.")],
    port: Annotated[int, typer.Option(help="TCP port on 127.0.0.1; 0 takes a free one.")] = 8787,
    model: Annotated[str, typer.Option(help="What answers: local/smollm2-135m-instruct, or echo.")] = (
        "local/smollm2-135m-instruct"
    ),
) -> None:
    """``llmdo local``."""
    try:
        from llmdo.local.server import serve  # needs the extra [local]
        from llmdo.local.settings import CannotServe
    except ModuleNotFoundError as error:
        complain(f"llmdo local needs the package {error.name}: run {install_command('[local]')}")
        raise typer.Exit(EXIT_USAGE) from None
    try:
        serve(data, port, model)
    except CannotServe as error:
        complain(str(error))
        raise typer.Exit(EXIT_FAILED) from None
