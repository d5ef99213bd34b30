"""``llmdo ask``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from llmdo.pipelines.ask_options import AskOptions, check_ask_options
from llmdo.pipelines.option_types import OPENAI
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import note

EXAMPLES = """
Examples:

    llmdo ask "Why is the sky blue?" --model local/smollm2-135m-instruct

    git diff | llmdo ask - --system "Write a commit message for this diff." --model openai/gpt-4o

Exit codes: 0 answered; 1 failed, or no text came; 2 usage.
"""
app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(AskOptions)
def ask(
    given: dict[str, Any],
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Write as it comes; by default on a terminal.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --stream, an object for each piece.")
    ] = False,
) -> None:
    """``llmdo ask``."""
    from llmdo.backends.workers_ai.errors import PROVIDER as WORKERS_AI
    from llmdo.runners.inspecting import ask as inspecting

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise UsageError(["the prompt is empty: write what to ask"])
    options = check_ask_options(**given)
    provider = options.model.partition("/")[0]
    if options.gateway is not None and provider != WORKERS_AI:
        note(f"--gateway is for Workers AI: {options.model} is called without the AI Gateway")
    if options.header and provider != OPENAI:
        note(f"--header is for OPENAI_BASE_URL: {provider} is called without it")
    live = stream if stream is not None else sys.stdout.isatty() and not as_json
    said = inspecting.ask(text, options, sys.stdout, stream=live, as_json=as_json)
    for warning in said.warnings:
        note(warning)
    raise typer.Exit(0 if said.answered else EXIT_FAILED)
