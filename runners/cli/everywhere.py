"""Options that every command has: how much it says, and in which colours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import typer
import typer.main

from llmdo.runners.showing.logs import show_own_logs, use_json

PANEL = "Everywhere"
_COLOR = "--color"


def _quiet(wanted: bool) -> None:
    if wanted:
        from llmdo.runners.showing.terminal import be_quiet

        be_quiet()


def _log_format(wanted: str) -> None:
    if wanted == "json":
        use_json()


def _everywhere(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Say only what goes wrong.",
            callback=_quiet,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            show_default=False,
            help="Log what is done; -vv in detail.",
            callback=show_own_logs,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = 0,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            "--log-format",
            help="Logs as text, or as JSON, an object a line.",
            callback=_log_format,
            expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = "text",
    color: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(
            _COLOR, help="Colours: on a terminal, always or never.", expose_value=False, rich_help_panel=PANEL
        ),
    ] = "auto",
) -> None:
    """Declares them."""


_app = typer.Typer(add_completion=False)
_app.command()(_everywhere)


def add_everywhere(command: Any) -> None:
    """Adds them to a command, and to the commands of a group."""
    command.params += [one for one in typer.main.get_command(_app).params if one.name != "help"]
    for inner in getattr(command, "commands", {}).values():
        add_everywhere(inner)


def choose_color(arguments: Sequence[str]) -> None:
    """Heeds ``--color`` before anything is written: Rich reads these variables when it is imported."""
    wanted = [word.partition("=")[2] for word in arguments if word.startswith(f"{_COLOR}=")]
    wanted += [after for word, after in pairwise(arguments) if word == _COLOR]
    if "never" in wanted:
        os.environ["NO_COLOR"] = "1"
    elif "always" in wanted:
        os.environ.pop("NO_COLOR", None)
        os.environ["FORCE_COLOR"] = "1"
