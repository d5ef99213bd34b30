"""``llmdo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.showing.terminal import put, stderr
from llmdo.runners.showing.words import counted
from llmdo.settings.installing import install_command

EXAMPLES = """
Examples:

    llmdo report out/

    llmdo report r2://bucket/output/ -o october.html --no-samples

The page holds prompts and answers unless there are --no-samples. It loads nothing and sends nothing.
"""

app = arg.command_app()


@app.command(epilog=EXAMPLES)
def report(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    file: Annotated[Path, typer.Option("--report", "-o", help="The HTML file to write; it is replaced.")] = Path(
        "report.html"
    ),
    lines: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Answers that distributions are from, drawn at random.")
    ] = 100_000,
    samples: Annotated[int, typer.Option(min=0, max=5_000, help="Answers to look through, drawn at random.")] = 200,
    no_samples: Annotated[
        bool, typer.Option("--no-samples", help="No prompts, no answers, and no words of services about them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """``llmdo report``."""
    try:
        from llmdo.runners.inspecting.report.collecting import Wanted
        from llmdo.runners.inspecting.report.making import make_report
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"matplotlib", "jinja2", "markupsafe"}:
            raise
        raise UsageError([f"llmdo report needs matplotlib and jinja2: run {install_command('[report]')}"]) from None

    with stderr.status("reading") as status:
        made = make_report(output, file, Wanted(lines, 0 if no_samples else samples), status.update)
    if as_json:
        put(
            {
                "report": str(made.path),
                "bytes": made.size,
                "files": made.files,
                "lines": made.lines,
                "lines_read": made.read,
                "samples": made.samples,
            }
        )
        return
    read = f"a random sample of {made.read:,} of them" if made.read < made.lines else "all of them read"
    typer.echo(f"{made.path}: {counted(made.lines, 'line')} of {counted(made.files, 'file')}, {read}")
