"""Why lines failed, at the end of a run and in its status."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table
from rich.text import Text

from llmdo.runners.showing.summary import Summary
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.error_classes import ErrorClass, errors_of_files
from llmdo.transforms.files.folders import folder_of

# Rows of the table, and characters of an example.
_SHOWN, _EXAMPLE_CHARACTERS = 10, 160


def errors_of(summary: Summary, output: Location) -> tuple[ErrorClass, ...]:
    """The classes of the errors in the files that a run settled; none where they cannot be read now."""
    folders = [folder_of(output, one.file) for one in summary.settled if one.status == "done" and one.failed]
    try:
        return errors_of_files(open_store(output.store_url), folders) if folders else ()
    except StorageError:
        return ()


def errors_table(errors: Sequence[ErrorClass], title: str = "") -> Table:
    """A row for each class, the most frequent first."""
    table = Table("error", "code", Column("lines", justify="right"), "for example", title=title or None)
    for one in errors[:_SHOWN]:
        table.add_row(Text(one.name), Text(one.code), f"{one.count:,}", Text(one.example[:_EXAMPLE_CHARACTERS]))
    if len(errors) > _SHOWN:
        rest = sum(one.count for one in errors[_SHOWN:])
        table.add_row(f"… and {len(errors) - _SHOWN:,} more", "", f"{rest:,}", "")
    return table
