"""``llmdo export``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmdo.pipelines.usage import UsageError
from llmdo.runners.cli import arguments as arg
from llmdo.runners.exit_codes import EXIT_FAILED
from llmdo.runners.showing.terminal import note, put
from llmdo.runners.showing.words import counted

EXAMPLES = """
Examples:

    llmdo export out/ --to answers.csv

    llmdo export r2://bucket/output/ --to r2://bucket/tables/ --format parquet

    llmdo export out/ --to praise.parquet --columns id,text,label,cost_usd --errors drop

Exit codes: 0 all is written; 1 no file is done, or one that was named is not, or storage failed; 2 usage.
"""

app = arg.command_app()


_To = Annotated[
    str,
    typer.Option(
        help="FILE.jsonl, FILE.csv or FILE.parquet for all files; FOLDER/ for a table of each. Also r2://…; what is "
        "there is replaced."
    ),
]
_Form = Annotated[
    Literal["jsonl", "csv", "parquet"] | None,
    typer.Option("--format", help="Of the tables in FOLDER/; jsonl by default."),
]
_Join = Annotated[
    bool, typer.Option(help="Read the sources, for all of the input's fields; else those that the rows have.")
]
_Schema = Annotated[
    Path | None, typer.Option(help="JSON Schema of the answers: a column a property. By default that of the run.")
]
_Errors = Annotated[
    Literal["separate", "inline", "drop"],
    typer.Option(
        help="Lines without an answer: in a table beside, FILE.errors.csv and so on; between the answers; nowhere."
    ),
]


@app.command(epilog=EXAMPLES)
def export(
    output: Annotated[str, typer.Argument(help="r2://BUCKET/PREFIX/ or a folder, as given to run.")],
    to: _To,
    files: Annotated[list[str] | None, typer.Argument(help="Keys or patterns of files; all by default.")] = None,
    form: _Form = None,
    single: Annotated[bool, typer.Option("--single", help="One table in FOLDER/, answers.FORMAT.")] = False,
    columns: Annotated[str | None, typer.Option(help="Names with commas between them: which, in their order.")] = None,
    join: _Join = True,
    schema: _Schema = None,
    no_schema: Annotated[bool, typer.Option("--no-schema", help="No columns for properties.")] = False,
    errors: _Errors = "separate",
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Also versions of files that have changed since.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """``llmdo export``."""
    from llmdo.runners.ending import Ending
    from llmdo.runners.inspecting.export.making import Export
    from llmdo.runners.inspecting.export.making import export as exporting
    from llmdo.runners.showing.counting import counting

    wanted = Export(
        output,
        to,
        tuple(files or ()),
        form=form,
        single=single,
        columns=_names(columns),
        schema={} if no_schema else arg.json_object_of(schema, "--schema") if schema else None,
        join=join,
        errors=errors,
        every_version=all_versions,
    )
    ending = Ending()
    with ending.heeded(), counting("rows") as says:
        done = exporting(wanted, says, ending)
    for sentence in (*done.missing, *done.notes):
        note(sentence)
    if as_json:
        put({"exit_code": EXIT_FAILED if done.missing else 0, **asdict(done)})
    elif not done.missing:
        _show(done.written, done.answers, done.errors, done.files, errors)
    raise typer.Exit(EXIT_FAILED if done.missing else 0)


def _show(written: list[str], answers: int, failed: int, files: int, errors: str) -> None:
    tables = (
        written[0] if len(written) == 1 else " and ".join(written) if len(written) == 2 else f"{len(written):,} files"
    )
    lines = f", {counted(failed, 'error line')}" if failed and errors != "drop" else ""
    typer.echo(f"{tables}: {counted(answers, 'answer')}{lines} of {counted(files, 'file')}")


def _names(columns: str | None) -> tuple[str, ...] | None:
    if columns is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in columns.split(",") if name.strip()))
    if not names:
        raise UsageError(["--columns names none: write, for example, --columns id,answer"])
    return names
