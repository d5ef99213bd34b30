"""``llmdo retry``: tries the error lines of an output again, with the output's own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console

from llmdo.pipelines import retry as pipeline
from llmdo.pipelines.graph.own import OWN_STEPS
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.usage import UsageError
from llmdo.runners.running.attempt import Watch
from llmdo.runners.running.run import run
from llmdo.runners.showing.errors import errors_table
from llmdo.runners.showing.report import files_table, show_limits
from llmdo.runners.showing.summary import Summary
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder
from llmdo.storage.output import configuration
from llmdo.storage.output.error_classes import ErrorClass

# Fields that an output's configuration has only if they were set → their options.
_OPTIONS = {
    "prompt": "prompt",
    "line_parameters": "line_parameters",
    "vectors": "vectors",
    "model_for": "model_for",
    "schema": "response_schema",
    "format": "format",
}

_TOO_LONG = ": they were too long to keep; run the files again with a higher --max-line-bytes and the same --output."


def retry_options(output: str, which: Literal["retryable", "all"], **given: Any) -> JsonlOptions:
    """The options of a retry: model, parameters and system prompt are the output's own.

    Raises UsageError, also for an output without a configuration, MissingSettings, StorageError.
    """
    try:
        where = locate_folder(output)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None
    store = open_store(where.store_url)
    problem = f"{store.url}/{where.key}{configuration.NAME} is not there: give the --output of a run"
    try:
        there = configuration.read(store, where.key)
    except ValueError as error:
        there, problem = None, str(error)
    if there is None:
        raise UsageError([f"{problem}; error files can also be given to llmdo run, with another --output"])
    if OWN_STEPS in there:
        said = f"{output} was answered with steps of a program's own, which a retry does not have"
        raise UsageError([f"{said}: give its error files to that program, with another output"])
    parameters = there.get("parameters")
    decisive = {
        "model": there.get("model"),
        "system": there.get("system", ""),
        **{option: there[name] for name, option in _OPTIONS.items() if name in there},
        **(parameters if isinstance(parameters, dict) else {}),
    }
    return check_options(**{**decisive, **given, "output": output, "retry": which})


def retry(options: JsonlOptions, watch: Watch) -> Summary:
    """Retries what can be retried; ``watch`` shows the state meanwhile. Raises what ``prepare`` raises."""
    return run(options, watch, pipeline.build)


def retry_json(summary: Summary) -> dict[str, Any]:
    """For ``--json``: lines tried again, answered now, failed again, and error lines that were not tried again."""
    counts = summary.counts
    return {
        **summary.calls_json(),
        **summary.files_json(),
        "retried": counts.answered + counts.failed,
        "answered": counts.answered,
        "failed": counts.failed,
        "not_retried": counts.failed_before,
    }


def show_retry(summary: Summary, options: JsonlOptions, console: Console, errors: Sequence[ErrorClass] = ()) -> None:
    """The files that were tried again, why lines still fail, then the outcome of their lines in one sentence."""
    table = files_table(summary, "not merged: run llmdo retry again to resume")
    if table.row_count:
        console.print(table)
    if errors:
        console.print(errors_table(errors))
    counts = summary.counts
    tried = counts.answered + counts.failed
    said = "Nothing to try again."
    if tried:
        said = f"Tried {tried:,} lines again: {counts.answered:,} answered now, {counts.failed:,} still errors."
    if counts.failed_before:
        said += f" {counts.failed_before:,} error lines would fail again and were left"
        said += _TOO_LONG if options.retry == "all" else "; --all tries them too."
    console.print(said)
    show_limits(summary, console)
