"""The command line. Each command has a module of its own, which is imported when it is called."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from llmdo import __version__
from llmdo.backends.collector import THRESHOLDS
from llmdo.runners.cli.everywhere import add_everywhere, choose_color
from llmdo.runners.cli.settings import defaults, read_settings
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.temporary import remove_abandoned

# What each command does, in the order of use.
COMMANDS = {
    "ask": "Ask a model one thing; the answer goes to stdout as it comes.",
    "run": "Answer what is there, then exit: files, a listing, or what a queue announces.",
    "stream": "Answer what a queue announces, until SIGTERM or Ctrl-C, which drain; a second one exits at once.",
    "schedule": "Answer what is there at each tick, never two runs at once, until SIGTERM or Ctrl-C, which drain.",
    "status": "Show what is done, in work, waiting and failed in an output, and which runs are alive.",
    "ctl": "Pause, resume, change or drain the runs of an output, wherever they run.",
    "cat": "Print the rows of files that are done, in the order of their sources.",
    "export": "Write answers as a table, joined to the input: JSON lines, CSV or Parquet.",
    "report": "Write an output's report: one HTML file with outcome, costs, distributions, errors and samples.",
    "retry": "Answer an output's error lines again, by its own model and parameters, and merge the answers in.",
    "verify": "Check an output: is every line of every source in exactly one shard, and is every manifest true?",
    "ledger": "Look after ledgers of paid answers.",
    "chat": "Answer users' messages: those of event logs, then exit; or those of a queue, until SIGTERM or Ctrl-C.",
    "models": "List models, with context window in tokens, price for a million tokens, and what they can do.",
    "doctor": "Check that all is there that a run needs: keys, model, bucket, queue, clock, disk.",
    "config": "Show which options hold for a command, and from where, and which keys are set.",
    "local": "Serve Cloudflare, OpenAI and Anthropic on this machine, for trials and tests; until SIGTERM.",
}
# The folder → the heading that its commands are listed under, and their modules.
_FOLDERS = {
    "answer": ("Answer", ("ask", "run", "stream", "schedule", "chat")),
    "outputs": ("Look after outputs", ("status", "ctl", "cat", "export", "report", "retry", "verify", "ledger")),
    "lookup": ("Look up", ("models", "doctor", "config", "local")),
}


def command_of(name: str) -> Any:
    """A command, with all its parameters, or a group of commands."""
    folder = next(folder for folder, (_, names) in _FOLDERS.items() if name in names)
    command = typer.main.get_command(import_module(f"llmdo.runners.cli.{folder}.{name}").app)
    command.name, command.help = name, COMMANDS[name]
    add_everywhere(command)
    return command


class _Llmdo(TyperGroup):
    """Knows its commands by name and what they do; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See TyperGroup."""
        name, command, rest = super().resolve_command(ctx, args)
        if not command:
            return name, None, rest
        choose_color(rest)
        command = command_of(str(name))
        ctx.default_map = {name: defaults(str(name), command, read_settings(Path()), _all)}
        return name, command, rest


def _all() -> dict[str, Any]:
    return {name: command_of(name) for name in COMMANDS}


app = typer.Typer(
    name="llmdo",
    cls=_Llmdo,
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    epilog="Options may also stand in llmdo.toml, or in variables such as LLMDO_MODEL: see llmdo config --help.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stand_in() -> None:
    """Stands for a command whose module is not imported yet."""


for _panel, _names in _FOLDERS.values():
    for _name in _names:
        app.command(_name, help=COMMANDS[_name], rich_help_panel=_panel)(_stand_in)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmdo {__version__}")
        raise typer.Exit


@app.callback()
def _llmdo(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """The options of ``llmdo`` itself."""


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr, and with --json an object on stdout, too."""
    gc.set_threshold(*THRESHOLDS)  # imports make hardly any garbage, and looking for it costs 60 ms
    quieten(log_level())
    remove_abandoned()
    try:
        app(args=argv)
    except Exception as error:
        from llmdo.runners.showing.failures import exit_code_and_problems
        from llmdo.runners.showing.terminal import complain, put

        code, problems = exit_code_and_problems(error)
        if code is None:
            raise
        complain(*problems)
        if "--json" in (sys.argv[1:] if argv is None else argv):
            put({"exit_code": code, "problem": "; ".join(problems)})
        sys.exit(code)
