"""``llmdo ask``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from llmdo.backends.errors import ModelNotFound
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.providers import split_model
from llmdo.pipelines.option_types import OPENAI, checked_header
from llmdo.pipelines.options import DEFAULT_MODEL, JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.showing.summary import EXIT_FAILED
from llmdo.runners.showing.terminal import note
from llmdo.settings.environment import check_gateway

EXAMPLES = """
Examples:

    llmdo ask "Why is the sky blue?" --model local/smollm2-135m-instruct

    git diff | llmdo ask - --system "Write a commit message for this diff." --model openai/gpt-4o

Exit codes: 0 answered; 1 failed, or no text came; 2 usage.
"""


app = arg.command_app()


@app.command(epilog=EXAMPLES)
@arg.takes(JsonlOptions, only=("gateway", "header"))
def ask(
    given: dict[str, Any],
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    model: Annotated[str, typer.Option(help="PROVIDER/MODEL.")] = DEFAULT_MODEL,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Write as it comes; by default on a terminal.")
    ] = None,
    system: Annotated[str, typer.Option(help="A system prompt, as text (run takes a file).")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the answer at most.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 5.", min=0, max=5)] = None,
    call_timeout: Annotated[float, typer.Option(help="Seconds that the model may be silent.", min=1)] = CALL_TIMEOUT_S,
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
    try:
        provider, _ = split_model(model)
    except ModelNotFound as error:
        raise UsageError([f"--model {error.message}"]) from None
    gateway = given["gateway"]
    if gateway is not None:
        try:
            check_gateway(gateway)
        except ValueError as error:
            raise UsageError([f"--gateway {gateway!r}: {error}"]) from None
        if provider != WORKERS_AI:
            note(f"--gateway is for Workers AI: {model} is called without the AI Gateway")
    set_here = {"max_tokens": max_tokens, "temperature": temperature}
    parameters = {name: value for name, value in set_here.items() if value is not None}
    live = stream if stream is not None else sys.stdout.isatty() and not as_json
    headers = _headers(given["header"], provider)
    question = inspecting.Question(text, model, system, parameters, gateway, headers, call_timeout)
    said = inspecting.ask(question, sys.stdout, stream=live, as_json=as_json)
    for warning in said.warnings:
        note(warning)
    raise typer.Exit(0 if said.answered else EXIT_FAILED)


def _headers(header: tuple[str, ...], provider: str) -> tuple[str, ...]:
    """Raises UsageError."""
    try:
        headers = tuple(map(checked_header, header))
    except ValueError as error:
        raise UsageError([f"--header: {error}"]) from None
    if headers and provider != OPENAI:
        note(f"--header is for OPENAI_BASE_URL: {provider} is called without it")
    return headers
