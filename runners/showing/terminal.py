"""What the commands write for people beside their output: progress, complaints, and how a run ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from llmdo.runners.showing.limits import until_text

if TYPE_CHECKING:
    from llmdo.runners.showing.summary import Summary

# Stdout holds what was asked for, and nothing else. Progress and notes go here:
stderr = Console(stderr=True)
_problems = Console(stderr=True)


def be_quiet() -> None:
    """From now on only problems are said."""
    stderr.quiet = True


def is_quiet() -> bool:
    """Whether only problems are said."""
    return stderr.quiet


def put(result: object) -> None:
    """Writes a command's result to stdout: a dict or a list as a line of JSON, anything else as people read it."""
    if isinstance(result, dict | list):
        print(json.dumps(result), flush=True)  # noqa: T201  this is the command's output
    else:
        Console().print(result)


def complain(*problems: str) -> None:
    """A line for each problem, verbatim: brackets in the words of a service are not markup."""
    for problem in problems:
        _problems.print(Text.assemble(("llmdo: ", "red"), problem), soft_wrap=True)


def note(sentence: str) -> None:
    """A line worth knowing that is not about a failure."""
    stderr.print(f"llmdo: {sentence}", markup=False, highlight=False, soft_wrap=True)


def exit_by(run: Summary, code: int) -> NoReturn:
    """Reports why a run stopped, and when it can resume; exits with ``code``."""
    if run.problem:
        complain(run.problem)
    if run.until is not None:
        complain(until_text(run.until))
    raise typer.Exit(code)
