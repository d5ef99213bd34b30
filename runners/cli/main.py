"""The command line, put together from its commands. They import what they run when they run it: Beam takes a second."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from llmdo import __version__
from llmdo.backends.errors import ModelError
from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import ask, chat, ledger, local, models, retry, run, schedule, stream, verify
from llmdo.runners.showing.limits import until_text
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.showing.summary import EXIT_FAILED, EXIT_USAGE
from llmdo.runners.showing.terminal import complain
from llmdo.runners.temporary import remove_abandoned
from llmdo.runners.tools import ToolError
from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import BucketNotFound, StorageError

app = typer.Typer(
    name="llmdo",
    help="Answers files of prompts in object storage: nothing lost, nothing paid twice.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=run.EXAMPLES)(run.run)
app.command(epilog=stream.EXAMPLES)(stream.stream)
app.command(epilog=schedule.EXAMPLES)(schedule.schedule)
app.command(epilog=retry.EXAMPLES)(retry.retry)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=ask.EXAMPLES)(ask.ask)
app.command(epilog=models.EXAMPLES)(models.models)
app.command(epilog=local.EXAMPLES)(local.local)
app.add_typer(ledger.ledger, name="ledger")
app.add_typer(chat.chat_app, name="chat")


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
    """What the options of ``llmdo`` itself are."""


def main(argv: list[str] | None = None) -> None:
    """Runs a command; every expected error is one sentence on stderr, and with --json an object on stdout, too."""
    quieten(log_level())
    remove_abandoned()
    try:
        app(args=argv)
        return
    except (UsageError, MissingSettings) as error:
        code, problems = EXIT_USAGE, list(error.problems)
    except BucketNotFound as error:
        code, problems = EXIT_USAGE, [str(error)]
    except (StorageError, ToolError, ModelError) as error:
        code, problems = EXIT_FAILED, [str(error)]
        if isinstance(error, ModelError) and error.until is not None:
            problems.append(until_text(error.until))
    complain(*problems)
    if "--json" in (sys.argv[1:] if argv is None else argv):
        print(json.dumps({"exit_code": code, "problem": "; ".join(problems)}), flush=True)  # noqa: T201  as above
    sys.exit(code)
