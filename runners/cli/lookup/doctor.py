"""``llmdo doctor``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import put
from llmdo.settings.environment import default_queue

EXAMPLES = """
Examples:

    llmdo doctor

    llmdo doctor --model openai/gpt-4o-mini --call

    llmdo doctor --output r2://bucket/output/ --queue llmdo-input --input r2://bucket/input/

It changes nothing, but for one small object that it writes below --output and removes. Exit codes: 0 no fault; 1 some.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def doctor(
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where answers are to go.")] = None,
    input: Annotated[
        str | None, typer.Option(help="r2://BUCKET/PREFIX/ whose new objects the queue announces.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Queue of R2 events; default LLMDO_QUEUE.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="PROVIDER/MODEL; by default as the environment has keys.")
    ] = None,
    call: Annotated[bool, typer.Option("--call", help="Call the model once, with a few tokens.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """``llmdo doctor``."""
    from llmdo.runners.inspecting import doctor as inspecting

    asked = inspecting.Asked(model, input, output, queue or default_queue(), call)
    findings, console = [], Console()
    for one in inspecting.examine(asked):
        findings.append(one)
        if not as_json:
            console.print(inspecting.finding_table([one]))
    if as_json:
        put(inspecting.findings_json(findings))
    raise typer.Exit(EXIT_FAILED if inspecting.worst(findings) == "fault" else 0)
