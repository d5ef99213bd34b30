"""Makes a report of an output and writes it to a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.cat import output_of
from llmdo.runners.inspecting.report.collecting import Collector, Wanted
from llmdo.runners.inspecting.report.page import page
from llmdo.settings import private
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.overview import check_there


@dataclass(frozen=True, slots=True)
class ReportWritten:
    """What a report is of; ``read`` of the ``lines`` are in its distributions."""

    path: Path
    size: int
    files: int
    lines: int
    read: int
    samples: int


def make_report(output_url: str, path: Path, wanted: Wanted, says: Callable[[str], None]) -> ReportWritten:
    """Writes the report as a file for this user alone. Raises UsageError, MissingSettings and StorageError."""
    where = output_of(output_url)
    store = open_store(where.store_url)
    check_there(store, where.key)
    found = Collector(store, where.key, output_url, wanted, says).collect()
    says("drawing")
    body = page(found, datetime.now(UTC), with_texts=wanted.samples > 0).encode("utf-8", "replace")
    try:
        private.write(path, body)
    except OSError as error:
        raise UsageError([f"--report {path} cannot be written ({error.strerror}): name another file"]) from None
    tally = found.tally
    return ReportWritten(
        path,
        len(body),
        len(found.files),
        found.answered + found.failed,
        tally.answers + tally.error_lines,
        len(found.samples),
    )
