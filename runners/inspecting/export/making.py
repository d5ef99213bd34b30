"""Exports an output: its rows as tables, in the order of their sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.runners.ending import Ending
from llmdo.runners.inspecting.cat import output_of
from llmdo.runners.inspecting.export.passes import TableMaker
from llmdo.runners.inspecting.export.plan import check_targets, choose_files, tables, target_of
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, ObjectStore
from llmdo.storage.output import configuration
from llmdo.storage.output.jobs import Jobs

Errors = Literal["separate", "inline", "drop"]


@dataclass(frozen=True, slots=True)
class Export:
    """What to export.

    Attributes:
        to: a file, or a folder for a file of each source.
        files: keys or patterns; all by default.
        form: the format, where the name does not say it.
        single: one file for all in the folder.
        columns: which, in their order.
        schema: of the answers; None for that of the output.
        join: fields of the input come from the sources.
        errors: lines without an answer go to a file of their own, between the answers, or nowhere.
        every_version: also versions of a file that a later one has replaced.
    """

    output: str
    to: str
    files: tuple[str, ...] = ()
    form: str | None = None
    single: bool = False
    columns: tuple[str, ...] | None = None
    schema: Mapping[str, Any] | None = None
    join: bool = True
    errors: Errors = "separate"
    every_version: bool = False


@dataclass(slots=True)
class ExportDone:
    """What was written; ``missing``: why nothing was; ``notes`` are sentences worth knowing."""

    format: str
    written: list[str] = field(default_factory=list)
    files: int = 0
    answers: int = 0
    errors: int = 0
    joined: int = 0
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def export(wanted: Export, says: Callable[[int, int], None], ending: Ending | None = None) -> ExportDone:
    """Writes the tables; ``says`` hears how many rows of how many are read, ``ending`` raises what ends it.

    Raises UsageError, MissingSettings and StorageError: then the table in work is not there, and others are whole.
    """
    target = target_of(wanted.to, wanted.form, single=wanted.single)
    output = output_of(wanted.output)
    store = open_store(output.store_url)
    found = choose_files(store, output.key, wanted.files, wanted.output, every_version=wanted.every_version)
    done = ExportDone(target.form, notes=found.notes, missing=found.missing)
    if found.missing:
        return done
    planned = list(tables(target, found.files))
    check_targets([place for place, _ in planned], found.files, output, target)
    if Jobs(store, output.key).are_there():
        done.notes.append("some files are still in work, and their rows are not there yet: llmdo status shows which")
    settings = _settings(store, output)
    total = sum(file.answered + file.failed for file in found.files)
    maker = TableMaker(
        store,
        target,
        schema=(settings.get("schema") or {}) if wanted.schema is None else wanted.schema,
        templated=bool(settings.get("prompt")),
        columns=wanted.columns,
        join=wanted.join,
        errors=wanted.errors,
        says=lambda rows: says(rows, total),
        ending=ending or Ending(),
    )
    for place, files in planned:
        table = maker.make(place, files)
        done.written += table.written
        done.files += len(files)
        done.answers += table.answers
        done.errors += table.errors
        done.joined += table.joined
        done.notes += table.notes
    done.notes += maker.unseen()
    return done


def _settings(store: ObjectStore, output: Location) -> Mapping[str, Any]:
    try:
        return configuration.read(store, output.key) or {}
    except ValueError as error:
        raise StorageError(str(error)) from None
