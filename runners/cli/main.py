"""The command line. Each command has a module of its own, which is imported when it is called."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from llmdo import __version__
from llmdo.backends.collector import THRESHOLDS
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.temporary import remove_abandoned

# The module in this folder → what the command does.
COMMANDS = {
    "run": "Answer what is there, then exit: files, a listing, or what a queue announces.",
    "stream": "Answer what a queue announces, until SIGTERM or Ctrl-C, which drain; a second one exits at once.",
    "schedule": "Answer what is there at each tick, never two runs at once, until SIGTERM or Ctrl-C, which drain.",
    "retry": "Answer an output's error lines again, by its own model and parameters, and merge the answers in.",
    "verify": "Check an output: is every line of every source in exactly one shard, and is every manifest true?",
    "ledger": "Look after ledgers of paid answers.",
    "chat": "Answer users' messages: those of event logs, then exit; or those of a queue, until SIGTERM or Ctrl-C.",
    "ask": "Ask a model one thing; the answer goes to stdout as it comes.",
    "models": "List models, with context window in tokens, price for a million tokens, and what they can do.",
    "local": "Serve Cloudflare on this machine: R2 with event notifications, Queues, Workers AI; until SIGTERM.",
}


def command_of(name: str) -> Any:
    """A command, with all its parameters, or a group of commands."""
    command = typer.main.get_command(import_module(f"llmdo.runners.cli.{name}").app)
    command.name, command.help = name, COMMANDS[name]
    return command


class _Llmdo(TyperGroup):
    """Knows its commands by name and what they do; imports the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See TyperGroup."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command_of(str(name)) if command else None, rest


app = typer.Typer(
    name="llmdo",
    cls=_Llmdo,
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stand_in() -> None:
    """Stands for a command whose module is not imported yet."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_stand_in)


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
