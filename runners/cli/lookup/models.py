"""``llmdo models``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from llmdo.backends.providers import PROVIDERS
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import note, put

_WIDE = 200  # columns of a table that goes into a file or a pipe

EXAMPLES = """
Examples:

    llmdo models workers-ai --task embed

    llmdo models --json

Lists are kept for an hour in $XDG_CACHE_HOME/llmdo.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def models(
    provider: Annotated[str | None, typer.Argument(help=f"One of {', '.join(PROVIDERS)}; all by default.")] = None,
    task: Annotated[str, typer.Option(help="Only models whose task, or else whose name, contains this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the lists as JSON.")] = False,
) -> None:
    """``llmdo models``."""
    from llmdo.runners.inspecting import models as inspecting

    if provider is not None and provider not in PROVIDERS:
        raise UsageError([f"{provider!r} is not a provider that is known here: name one of {', '.join(PROVIDERS)}"])
    lists = inspecting.read_lists(provider, task)
    if as_json:
        put(inspecting.as_json(lists))
    else:
        Console(width=None if sys.stdout.isatty() else _WIDE).print(inspecting.table(lists))
    for problem in inspecting.problems(lists):
        note(problem)
    if task and not any(listed.list and listed.list.models for listed in lists):
        note(f"no model's task, or name, contains {task!r}: see `llmdo models` for what there is")
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(0 if any(listed.list for listed in lists) else EXIT_FAILED)
