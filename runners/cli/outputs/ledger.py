"""``llmdo ledger``."""

from __future__ import annotations

from typing import Annotated

import typer

from llmdo.runners.cli import arguments as arg

PRUNE_EXAMPLES = "Example: llmdo ledger prune sqlite:///out/_ledger.sqlite --older-than-days 30"

app = arg.command_app()


@app.callback(no_args_is_help=True)
def ledger() -> None:
    """``llmdo ledger``: a group, even with only one command."""


@app.command(epilog=PRUNE_EXAMPLES)
def prune(
    url: Annotated[str, typer.Argument(help="The ledger, as given to run.")],
    older_than_days: Annotated[float, typer.Option(help="Age in days of what goes.", min=0)],
) -> None:
    """Remove old answers from a ledger; runs may continue meanwhile."""
    from llmdo.storage.ledger.opening import prune_ledger

    pruned = prune_ledger(url, older_than_days * 86_400)
    print(f"removed {pruned.entries:,} answers of {pruned.bytes:,} bytes")  # noqa: T201  this is the command's output
