"""The commands that only need a model: ``llmdo ask`` and ``llmdo models``."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from llmdo.backends.errors import ModelNotFound
from llmdo.backends.providers import PROVIDERS, split_model
from llmdo.backends.workers_ai.errors import PROVIDER as WORKERS_AI
from llmdo.pipelines.option_types import OPENAI, checked_header
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.inspecting.ask import Question
from llmdo.runners.inspecting.ask import ask as ask_model
from llmdo.runners.inspecting.models import as_json as lists_as_json
from llmdo.runners.inspecting.models import problems, read_lists, table
from llmdo.runners.showing.summary import EXIT_FAILED
from llmdo.settings.environment import check_gateway

_WIDE = 200  # columns of a table that goes into a file or a pipe

ASK_EXAMPLES = """
Examples:

    llmdo ask "Why is the sky blue?" --model local/smollm2-135m-instruct

    git diff | llmdo ask - --system "Write a commit message for this diff." --model openai/gpt-4o

Exit codes: 0 answered; 1 failed, or no text came; 2 usage.
"""

MODELS_EXAMPLES = """
Examples:

    llmdo models workers-ai --task embed

    llmdo models --json

Lists are kept for an hour in $XDG_CACHE_HOME/llmdo.
"""


def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    model: Annotated[str, typer.Option(help="PROVIDER/MODEL.")] = arg.default("model"),
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Write as it comes; by default on a terminal.")
    ] = None,
    system: Annotated[str, typer.Option(help="A system prompt, as text (of run it is a file).")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the answer at most.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 5.", min=0, max=5)] = None,
    gateway: arg.Gateway = None,
    header: arg.Header = None,
    call_timeout: Annotated[float, typer.Option(help="Seconds that the model may be silent.", min=1)] = arg.default(
        "call_timeout"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --stream, an object for each piece.")
    ] = False,
) -> None:
    """Ask a model one thing; the answer goes to stdout as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise UsageError(["the prompt is empty: write what to ask"])
    try:
        provider, _ = split_model(model)
    except ModelNotFound as error:
        raise UsageError([f"--model {error.message}"]) from None
    if gateway is not None:
        try:
            check_gateway(gateway)
        except ValueError as error:
            raise UsageError([f"--gateway {gateway!r}: {error}"]) from None
        if provider != WORKERS_AI:
            _note(f"--gateway is for Workers AI: {model} is called without the AI Gateway")
    given = {"max_tokens": max_tokens, "temperature": temperature}
    parameters = {name: value for name, value in given.items() if value is not None}
    live = stream if stream is not None else sys.stdout.isatty() and not as_json
    question = Question(text, model, system, parameters, gateway, _headers(header, provider), call_timeout)
    said = ask_model(question, sys.stdout, stream=live, as_json=as_json)
    for warning in said.warnings:
        _note(warning)
    raise typer.Exit(0 if said.answered else EXIT_FAILED)


def _headers(header: list[str] | None, provider: str) -> tuple[str, ...]:
    """Raises UsageError."""
    try:
        headers = tuple(map(checked_header, header or ()))
    except ValueError as error:
        raise UsageError([f"--header: {error}"]) from None
    if headers and provider != OPENAI:
        _note(f"--header is for OPENAI_BASE_URL: {provider} is called without it")
    return headers


def models(
    provider: Annotated[str | None, typer.Argument(help=f"One of {', '.join(PROVIDERS)}; all by default.")] = None,
    task: Annotated[str, typer.Option(help="Only models whose task, or else whose name, contains this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
) -> None:
    """List models, with context window in tokens, price for a million tokens, and what they can do."""
    if provider is not None and provider not in PROVIDERS:
        raise UsageError([f"{provider!r} is no provider that is known here: name one of {', '.join(PROVIDERS)}"])
    lists = read_lists(provider, task)
    if as_json:
        print(json.dumps(lists_as_json(lists)))  # noqa: T201  this is the command's output
    else:
        Console(width=None if sys.stdout.isatty() else _WIDE).print(table(lists))
    for problem in problems(lists):
        _note(problem)
    if task and not any(listed.list and listed.list.models for listed in lists):
        _note(f"no model's task, or name, contains {task!r}: see `llmdo models` for what there is")
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(0 if any(listed.list for listed in lists) else EXIT_FAILED)


def _note(sentence: str) -> None:
    typer.echo(f"llmdo: {sentence}", err=True)
