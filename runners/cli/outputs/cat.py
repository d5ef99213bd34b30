"""``llmdo cat``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import note

EXAMPLES = """
Examples:

    llmdo cat out/ | jq -r '.response.body.choices[0].message.content'

    llmdo cat r2://bucket/output/ reviews.jsonl --errors

Exit codes: 0 all is there; 1 no file is done, or a file that was named is not; 2 usage.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def cat(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    files: Annotated[list[str] | None, typer.Argument(help="Keys or patterns of files; all by default.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The rows of lines without an answer.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Answers and errors.")] = False,
) -> None:
    """``llmdo cat``."""
    from llmdo.runners.inspecting import cat as inspecting

    if errors and everything:
        raise UsageError(["--errors and --all exclude each other: name one"])
    try:
        written = inspecting.cat(output, files or (), sys.stdout.buffer, errors=errors, everything=everything)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Whoever read has seen enough. Python would complain at its end: it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    for sentence in written.missing:
        note(sentence)
    raise typer.Exit(EXIT_FAILED if written.missing or not written.files else 0)
