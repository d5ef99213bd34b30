"""``llmdo config``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdo.backends.providers import usual_model
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.cli.settings import (
    SETTINGS_FILE,
    SettingsFile,
    check_names,
    defaults,
    read_settings,
    settable,
    variable_of,
)
from llmdo.runners.showing.terminal import put
from llmdo.settings.environment import SECRETS_READ_BY, plain_settings
from llmdo.settings.secrets import without_secrets

EXAMPLES = """
Examples:

    llmdo config

    llmdo config chat --json

An option is taken from the command line, else from its variable (LLMDO_MAX_COST for --max-cost), else from llmdo.toml,
or [tool.llmdo] in pyproject.toml, in the folder in which llmdo is started; else it has its default:

    model = "openai/gpt-4o-mini"

    output = "r2://bucket/answers/"

    [chat]

    log = "r2://bucket/chat/"
"""

_DEFAULT = "default"

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def config(
    command: Annotated[str, typer.Argument(help="run, stream, chat, …")] = "run",
    all_options: Annotated[bool, typer.Option("--all", help="Also options that have their default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """``llmdo config``."""
    from llmdo.runners.cli.main import COMMANDS, command_of

    if command not in COMMANDS:
        raise UsageError([f"{command!r} is no command: name one of {', '.join(COMMANDS)}"])
    found = read_settings(Path())
    options = _options(command, command_of(command), found, {name: command_of(name) for name in COMMANDS})
    shown = [one for one in options if all_options or one["from"] != _DEFAULT]
    if as_json:
        put({"command": command, "file": str(found.path or ""), "options": shown, "environment": _environment()})
        return
    _show(command, shown, found, Console())


def _options(name: str, command: Any, found: SettingsFile, commands: dict[str, Any]) -> list[dict[str, Any]]:
    check_names(found, commands)
    set_there = defaults(name, command, found, lambda: commands)
    context = command.make_context(name, [], resilient_parsing=True, default_map=set_there)
    rows = []
    for option, one in settable(command):
        if one.name not in context.params:
            continue
        source = context.get_parameter_source(one.name).name
        where = {"ENVIRONMENT": variable_of(option), "DEFAULT_MAP": found.name}.get(source, _DEFAULT)
        rows.append({"option": option, "value": context.params[one.name], "from": where})
    return rows


def _environment() -> dict[str, str]:
    """Variables that are set; of secrets only that they are."""
    said = dict.fromkeys((name for names in SECRETS_READ_BY.values() for name in names if os.environ.get(name)), "set")
    return {**plain_settings(), **said}


def _show(command: str, options: list[dict[str, Any]], found: SettingsFile, console: Console) -> None:
    table = Table("option", "value", "from")
    for one in options:
        table.add_row(one["option"], Text(without_secrets(str(one["value"]))), one["from"])
    console.print(
        table if table.row_count else f"All options of llmdo {command} have their defaults (--all shows them)."
    )
    for name, value in sorted(_environment().items()):
        console.print(Text(f"{name}: {without_secrets(value)}"), soft_wrap=True)
    model = usual_model()
    console.print(Text(f"Without --model: {model or 'none, since no keys of a provider are set'}"), soft_wrap=True)
    if found.path is None:
        console.print(f"There is no {SETTINGS_FILE} in this folder.")
