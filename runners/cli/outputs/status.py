"""``llmdo status``."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from llmdo.runners.cli import arguments as arg
from llmdo.runners.showing.terminal import put

_EVERY_S = 5.0

EXAMPLES = """
Examples:

    llmdo status out/

    llmdo status r2://bucket/output/ --watch

    llmdo status r2://bucket/output/ --json | jq .files

It reads only. Sums are of the manifests that could be read within some seconds; --watch reads on.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def status(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    queue: Annotated[str | None, typer.Option(help="A queue to ask for its backlog, besides those of runs.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 5 s, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch an object each time.")] = False,
) -> None:
    """``llmdo status``."""
    from llmdo.runners.inspecting.status import OutputWatch, status_shown

    looking, console = OutputWatch(output, queue), Console()
    if not watch:
        found = looking.look()
        put(found.as_json() if as_json else status_shown(found))
    elif as_json or not console.is_terminal:
        while True:
            found = looking.look()
            put(found.as_json() if as_json else status_shown(found))
            time.sleep(_EVERY_S)
    else:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(status_shown(looking.look()), refresh=True)
                time.sleep(_EVERY_S)
