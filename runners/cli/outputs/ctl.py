"""``llmdo ctl``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import put

EXAMPLES = """
Examples:

    llmdo ctl r2://bucket/output/ pause

    llmdo ctl r2://bucket/output/ resume

    llmdo ctl out/ set concurrency=8 max-cost=20

    llmdo ctl out/ drain

Orders go through the output, to all runs that are alive there, and hold until these end. Exit codes: 0 all obey; 1 some
do not; 2 usage, or no run is alive.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def ctl(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    what: Annotated[Literal["pause", "resume", "set", "drain"], typer.Argument(help="What the runs are to do.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="With set: concurrency=N, max-cost=USD.", show_default=False)
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="One run alone, as status names it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what each run says as JSON.")] = False,
) -> None:
    """``llmdo ctl``."""
    from llmdo.runners.inspecting.ctl import order
    from llmdo.storage.runs.control import Control

    changes = _changes(what, settings or [])
    try:
        Control.model_validate(changes)
    except ValueError:
        raise UsageError([_SET]) from None
    answers = order(output, lambda before: before.model_copy(update=changes), run)
    if as_json:
        put([one.as_json() for one in answers])
    else:
        for one in answers:
            put(f"{one.run_id}: {one.said}")
    raise typer.Exit(0 if all(one.obeys for one in answers) else EXIT_FAILED)


_SET = "write set concurrency=N with N from 1 to 4,096, set max-cost=USD, or both"


def _changes(what: str, settings: list[str]) -> dict[str, object]:
    if what != "set":
        if settings:
            raise UsageError([f"{what} takes no settings ({settings[0]}): {_SET}"])
        return {"paused": what == "pause"} if what != "drain" else {"drain": True}
    changes: dict[str, object] = {}
    for one in settings:
        name, _, value = one.partition("=")
        try:
            changes[{"concurrency": "concurrency", "max-cost": "max_cost"}[name]] = (
                int(value) if name == "concurrency" else float(value)
            )
        except (KeyError, ValueError):
            raise UsageError([f"{one!r} cannot be set: {_SET}"]) from None
    if not changes:
        raise UsageError([_SET])
    return changes
