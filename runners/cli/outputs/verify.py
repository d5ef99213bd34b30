"""``llmdo verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import put

EXAMPLES = "Example: llmdo verify r2://bucket/output/ --input r2://bucket/input/"

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def verify(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    input: Annotated[
        list[str] | None, typer.Option(help="The prompts, as given to run: r2:// prefixes, files, folders, patterns.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """``llmdo verify``."""
    from llmdo.runners.inspecting import verify as inspecting

    result = inspecting.verify(output, list(input or ()))
    put(result.as_json() if as_json else inspecting.render(result))
    raise typer.Exit(0 if result.ok else EXIT_FAILED)
